// The official Node client: chat completions and responses.
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import {
  check, goesOn, KEY, LONG_STORY, MODEL, PLACES, QUESTION, raises, run, sameAtOnce, TOO_LONG, URL_, waitUntilIdle, WEATHER,
} from "./cells.mjs";

const options = { baseURL: `${URL_}/v1`, apiKey: KEY, maxRetries: 0, timeout: 120_000 };
const client = new OpenAI(options), stranger = new OpenAI({ ...options, apiKey: "wrong" });
const messages = [{ role: "user", content: QUESTION }];
const ask = { model: MODEL, messages, temperature: 0, max_tokens: 30 };
const weather = { name: "get_weather", description: "The weather of a city", parameters: WEATHER, strict: true };
const tools = [{ type: "function", function: weather }];
const Wind = z.object({ place: z.enum(PLACES), speed: z.number().int().nullable() });

const create = (more) => client.chat.completions.create({ ...ask, ...more });
const text = async (more) => (await create(more)).choices[0].message.content;

await run("chat completions", {
  chat: async () => {
    const answer = await create();
    check(answer.choices[0].message.content && answer.usage.total_tokens > 0, answer);
    return answer.choices[0].finish_reason;
  },
  stream: async () => {
    const pieces = [];
    for await (const chunk of await create({ stream: true })) pieces.push(chunk.choices[0].delta.content ?? "");
    return goesOn(pieces, await text());
  },
  tools: async () => {
    const called = [];
    const runner = client.chat.completions.runTools({
      ...ask, max_tokens: 100, tool_choice: { type: "function", function: { name: "get_weather" } },
      tools: [{ type: "function", function: {
        ...weather, parse: JSON.parse, function: (given) => { called.push(given.city); return "sunny"; } } }],
    });
    await runner.done();
    const stream = client.chat.completions.stream({ ...ask, max_tokens: 100, tools, tool_choice: "required" });
    const { message } = (await stream.finalChatCompletion()).choices[0];
    check(PLACES.includes(called[0]) && JSON.parse(message.tool_calls[0].function.arguments).city, message);
    const results = message.tool_calls.map(({ id }) => ({ role: "tool", tool_call_id: id, content: "sunny" }));
    check(await text({ messages: [...messages, message, ...results], tools, tool_choice: "none" }));
    return called[0];
  },
  structured: async () => {
    const format = { ...ask, max_tokens: 60, response_format: zodResponseFormat(Wind, "wind") };
    const { message } = (await client.chat.completions.parse(format)).choices[0];
    check(PLACES.includes(message.parsed.place), message);
    check(await text({ messages: [...messages, message, ...messages] }));
    return message.content;
  },
  logprobs: async () => {
    const { content } = (await create({ logprobs: true, top_logprobs: 2 })).choices[0].logprobs;
    check(content.length && content.every((item) => item.logprob <= 0 && item.top_logprobs.length === 2), content);
    return `${content.length} tokens`;
  },
  too_long: () => raises(({ code }) => code === "context_length_exceeded",
    () => create({ messages: [{ role: "user", content: TOO_LONG }] })),
  bad_model: () => raises((error) => error instanceof OpenAI.NotFoundError, () => create({ model: "gpt-0" }), "gpt-0"),
  bad_key: () => raises((error) => error instanceof OpenAI.AuthenticationError,
    () => stranger.chat.completions.create(ask)),
  abort: async () => {
    const long = { messages: [{ role: "user", content: LONG_STORY }], max_tokens: 4000, stream: true };
    for await (const chunk of await create(long)) if (chunk.choices[0].delta.content) break;
    return waitUntilIdle();
  },
  at_once: () => sameAtOnce(() => text()),
});

const request = { model: MODEL, input: QUESTION, temperature: 0, max_output_tokens: 30 };
const respond = (more) => client.responses.create({ ...request, ...more });
const flat = [{ type: "function", ...weather }];

await run("responses", {
  chat: async () => {
    const answer = await respond();
    const again = await respond({ previous_response_id: answer.id });
    check(answer.output_text && again.output_text && again.usage.input_tokens > answer.usage.input_tokens, again);
    return answer.status;
  },
  stream: async () => {
    const pieces = [];
    for await (const event of client.responses.stream(request)) {
      if (event.type === "response.output_text.delta") pieces.push(event.delta);
    }
    return goesOn(pieces, (await respond()).output_text);
  },
  tools: async () => {
    const first = await respond({ tools: flat, tool_choice: "required", max_output_tokens: 100 });
    const calls = first.output.filter(({ type }) => type === "function_call");
    check(PLACES.includes(JSON.parse(calls[0].arguments).city), first.output);
    const results = calls.map(({ call_id }) => ({ type: "function_call_output", call_id, output: "sunny" }));
    const again = await respond({ input: [...messages, ...first.output, ...results], tools: flat, tool_choice: "none" });
    check(again.output_text, again);
    return calls[0].arguments;
  },
  structured: async () => {
    const text = { format: zodTextFormat(Wind, "wind") };
    const answer = await client.responses.parse({ ...request, max_output_tokens: 60, text });
    check(PLACES.includes(answer.output_parsed.place), answer);
    return answer.output_text;
  },
  logprobs: async () => {
    const answer = await respond({ include: ["message.output_text.logprobs"], top_logprobs: 2 });
    const found = answer.output.at(-1).content[0].logprobs;
    check(found.length && found.every(({ logprob }) => logprob <= 0), found);
    return `${found.length} tokens`;
  },
  too_long: () => raises(({ code }) => code === "context_length_exceeded", () => respond({ input: TOO_LONG })),
  bad_model: () => raises((error) => error instanceof OpenAI.NotFoundError, () => respond({ model: "gpt-0" }), "gpt-0"),
  bad_key: () => raises((error) => error instanceof OpenAI.AuthenticationError, () => stranger.responses.create(request)),
  abort: async () => {
    const long = { input: LONG_STORY, max_output_tokens: 4000, stream: true };
    for await (const event of await respond(long)) if (event.type === "response.output_text.delta") break;
    return waitUntilIdle();
  },
  at_once: () => sameAtOnce(async () => (await respond()).output_text),
});
