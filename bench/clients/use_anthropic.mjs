// Anthropic's Node client on messages.
import Anthropic from "@anthropic-ai/sdk";
import {
  check, goesOn, KEY, LONG_STORY, Missing, MODEL, PLACES, QUESTION, raises, run, sameAtOnce, TOO_LONG, URL_, waitUntilIdle,
  WEATHER,
} from "./cells.mjs";

const options = { baseURL: URL_, apiKey: KEY, maxRetries: 0, timeout: 120_000 };
const client = new Anthropic(options), stranger = new Anthropic({ ...options, apiKey: "wrong" });
const messages = [{ role: "user", content: QUESTION }];
const ask = { model: MODEL, messages, temperature: 0, max_tokens: 30 };
const tools = [{ name: "get_weather", description: "The weather of a city", input_schema: WEATHER }];
const create = (more) => client.messages.create({ ...ask, ...more });
const textOf = ({ content }) => content.filter(({ type }) => type === "text").map(({ text }) => text).join("");

await run("messages", {
  chat: async () => {
    const answer = await create();
    const counted = await client.messages.countTokens({ model: MODEL, messages });
    check(counted.input_tokens === answer.usage.input_tokens + (answer.usage.cache_read_input_tokens ?? 0), answer.usage);
    return answer.stop_reason;
  },
  stream: async () => {
    const pieces = [];
    await client.messages.stream(ask).on("text", (piece) => pieces.push(piece)).finalMessage();
    return goesOn(pieces, textOf(await create()));
  },
  tools: async () => {
    const { content } = await create({ tools, tool_choice: { type: "any" }, max_tokens: 100 });
    const calls = content.filter(({ type }) => type === "tool_use");
    check(PLACES.includes(calls[0].input.city), content);
    const results = calls.map(({ id }) => ({ type: "tool_result", tool_use_id: id, content: "sunny" }));
    const back = [...messages, { role: "assistant", content }, { role: "user", content: results }];
    check(textOf(await create({ messages: back, tools, tool_choice: { type: "none" } })));
    return calls[0].input.city;
  },
  structured: async () => {
    const answer = await create({ max_tokens: 60, output_config: { format: { type: "json_schema", schema: WEATHER } } });
    check(PLACES.includes(JSON.parse(textOf(answer)).city), answer.content);
    return textOf(answer);
  },
  logprobs: () => { throw new Missing("the Messages API has none"); },
  too_long: () => raises((error) => error instanceof Anthropic.BadRequestError,
    () => create({ messages: [{ role: "user", content: TOO_LONG }] }), "prompt is too long"),
  bad_model: () => raises((error) => error instanceof Anthropic.NotFoundError, () => create({ model: "gpt-0" }), "gpt-0"),
  bad_key: () => raises((error) => error instanceof Anthropic.AuthenticationError, () => stranger.messages.create(ask)),
  abort: async () => {
    const long = { messages: [{ role: "user", content: LONG_STORY }], max_tokens: 4000, stream: true };
    for await (const event of await create(long)) if (event.type === "content_block_delta") break;
    return waitUntilIdle();
  },
  at_once: () => sameAtOnce(async () => textOf(await create())),
});
