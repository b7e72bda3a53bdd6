// Vercel's AI SDK: openai-compatible, openai (responses) and anthropic.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import {
  check, goesOn, KEY, LONG_STORY, Missing, MODEL, PLACES, QUESTION, raises, run, sameAtOnce, TOO_LONG, URL_, waitUntilIdle,
} from "./cells.mjs";

globalThis.AI_SDK_LOG_WARNINGS = false;
const baseURL = `${URL_}/v1`;
const Weather = z.object({ city: z.enum(PLACES), degrees: z.number().int().min(0).max(40) });
const APIS = {
  "openai-compatible": (apiKey) =>
    createOpenAICompatible({ name: "brise", baseURL, apiKey, includeUsage: true, supportsStructuredOutputs: true }),
  "openai, responses": (apiKey) => createOpenAI({ baseURL, apiKey }),
  "openai, chat completions": (apiKey) => createOpenAI({ baseURL, apiKey }).chat,
  "anthropic": (apiKey) => createAnthropic({ baseURL, apiKey }),
};

for (const [api, provider] of Object.entries(APIS)) {
  const common = (more = {}) => ({
    model: provider(more.key ?? KEY)(more.name ?? MODEL), prompt: QUESTION, temperature: 0, maxOutputTokens: 30,
    maxRetries: 0, ...more,
  });
  const ask = (more) => generateText(common(more));
  const status = (code) => (error) => error.statusCode === code;

  await run(api, {
    chat: async () => {
      const { text, usage, finishReason } = await ask();
      check(text && usage.totalTokens > 0, usage);
      return finishReason;
    },
    stream: async () => {
      const pieces = [];
      for await (const piece of streamText(common()).textStream) pieces.push(piece);
      return goesOn(pieces, (await ask()).text);
    },
    tools: async () => {
      const called = [];
      const get_weather = tool({
        description: "The weather of a city", inputSchema: z.object({ city: z.enum(PLACES) }),
        execute: ({ city }) => { called.push(city); return "sunny"; },
      });
      const { steps } = await ask({
        tools: { get_weather }, toolChoice: "required", maxOutputTokens: 100, stopWhen: stepCountIs(2),
        prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber ? "none" : "required" }),
      });
      check(PLACES.includes(called[0]) && steps.at(-1).text, steps);
      return called[0];
    },
    structured: async () => {
      const output = Output.object({ schema: Weather });
      const answer = await ask({ output, maxOutputTokens: 60 });
      check(PLACES.includes(answer.output.city), answer.output);
      const { partialOutputStream } = streamText(common({ output, maxOutputTokens: 60 }));
      let last;
      for await (const part of partialOutputStream) last = part;
      check(PLACES.includes(last.city), last);
      return JSON.stringify(answer.output);
    },
    logprobs: async () => {
      if (!api.startsWith("openai,")) throw new Missing("this provider has none");
      const { providerMetadata } = await ask({ providerOptions: { openai: { logprobs: 2 } } });
      check(providerMetadata.openai.logprobs.length, providerMetadata);
      return `${providerMetadata.openai.logprobs.length} tokens`;
    },
    too_long: () => raises(status(400), () => ask({ prompt: TOO_LONG }), api === "anthropic" ? "prompt is too long" :
      "maximum context length"),
    bad_model: () => raises(status(404), () => ask({ name: "gpt-0" }), "gpt-0"),
    bad_key: () => raises(status(401), () => ask({ key: "wrong" })),
    abort: async () => {
      const stop = new AbortController();
      const { textStream } = streamText(common({
        prompt: LONG_STORY, maxOutputTokens: 4000, abortSignal: stop.signal, onError: () => {},
      }));
      for await (const piece of textStream) if (piece) stop.abort();
      return waitUntilIdle();
    },
    at_once: () => sameAtOnce(async () => (await ask()).text),
  });
}
