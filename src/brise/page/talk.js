// The conversation of the tab Chat: it goes on while other tabs are looked at, and survives a reload if it is small.

import { failure, get, headers } from "./api.js";

const PLACE = new URL("../v1/chat/completions", document.baseURI);
const KEPT = "brise-chat", MOST_KEPT = 200000; // characters in this tab's storage
const TASK = "page"; // of what is asked here, so that it is no evidence for another task
const LOOK_MS = 2000; // while the server is gone
const DRAW_MS = 50;

// Messages are {role, text, images}, and answers {role, text, reasoning, calls, about, state, why}.
export const talk = { messages: stored(KEPT, []), running: null, isGone: false, listeners: new Set() };

let timer = null;
function changed(isDone = false) {
  timer ??= setTimeout(() => {
    timer = null;
    for (const listener of talk.listeners) listener();
  }, isDone ? 0 : DRAW_MS);
}

// What this tab keeps under a name, until it is closed.
export function stored(name, otherwise) {
  try {
    return JSON.parse(sessionStorage.getItem(name)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

function keep() {
  const text = JSON.stringify(talk.messages.map((one) => (one.images?.length ? { ...one, images: [] } : one)));
  if (text.length <= MOST_KEPT) sessionStorage.setItem(KEPT, text);
  else sessionStorage.removeItem(KEPT);
}

export function clear() {
  stop();
  talk.messages = [];
  sessionStorage.removeItem(KEPT);
  changed(true);
}

export const stop = () => talk.running?.abort();

// A request with these messages added; the answer is added as it comes.
export async function ask(added, { model, system, tools }) {
  if (talk.running) return;
  const answer = { role: "assistant", text: "", reasoning: "", calls: [], about: {}, state: "waiting" };
  const messages = [...talk.messages.filter((one) => one.state !== "failed"), ...added];
  talk.messages = [...talk.messages, ...added, answer];
  const control = talk.running = new AbortController(), started = performance.now();
  changed(true);
  try {
    const body = { model, messages: [...(system ? [{ role: "system", content: system }] : []), ...messages.map(sent)],
      stream: true, stream_options: { include_usage: true }, ...(tools ? { tools } : {}) };
    await read(body, answer, started, control.signal);
    answer.state = answer.about.finish ? "done" : "cut";
    if (answer.state === "cut") answer.why = "The answer ended in the middle.";
  } catch (error) {
    if (control.signal.aborted) answer.state = "stopped";
    else Object.assign(answer, { state: answer.text || answer.reasoning ? "cut" : "failed", why: error.text ?? "The server is gone." });
    if (!control.signal.aborted && error.status === undefined) gone();
    else if (error.status === 401) window.dispatchEvent(new CustomEvent("brise-error", { detail: error }));
  }
  talk.running = null;
  keep();
  changed(true);
}

// The last question again, without the answer to it.
export function again(options) {
  const last = talk.messages.findLastIndex((one) => one.role !== "assistant");
  if (last < 0 || talk.running) return;
  const [question] = talk.messages.slice(last);
  talk.messages = talk.messages.slice(0, last);
  ask([question], options);
}

// Looks every few seconds whether the server is there again. What was said stays.
async function gone() {
  if (talk.isGone) return;
  talk.isGone = true;
  window.dispatchEvent(new CustomEvent("brise-error", { detail: { status: 0, text: "The server does not answer." } }));
  while (talk.isGone) {
    await new Promise((done) => { setTimeout(done, LOOK_MS); });
    try {
      await get("tasks");
      talk.isGone = false;
    } catch (error) {
      talk.isGone = error.status === 0;
    }
  }
  window.dispatchEvent(new Event("brise-there"));
  changed(true);
}

function sent({ role, text, images, calls, id }) {
  if (role === "tool") return { role, content: text, tool_call_id: id };
  if (role === "assistant") return { role, content: text, ...(calls.length ? { tool_calls: calls.map((call) => ({
    id: call.id, type: "function", function: { name: call.name, arguments: call.arguments } })) } : {}) };
  if (!images?.length) return { role, content: text };
  return { role, content: [{ type: "text", text }, ...images.map((url) => ({ type: "image_url", image_url: { url } }))] };
}

async function read(body, answer, started, signal) {
  const response = await fetch(PLACE, { method: "POST", body: JSON.stringify(body), signal, cache: "no-store", credentials: "omit",
    redirect: "error", headers: headers({ "content-type": "application/json", "x-brise-task": TASK }) });
  if (!response.ok) throw await failure(response);
  const about = answer.about, seconds = () => (performance.now() - started) / 1000;
  Object.assign(about, { mode: response.headers.get("x-brise-mode"), id: response.headers.get("x-brise-id"), task: TASK });
  for await (const event of events(response.body)) {
    if (event.error) throw Object.assign(new Error(), { status: 500, text: event.error.message ?? "The answer failed." });
    const choice = event.choices?.[0], delta = choice?.delta ?? {};
    about.model = event.model ?? about.model;
    about.fingerprint = event.system_fingerprint ?? about.fingerprint;
    about.tokens = event.usage?.completion_tokens ?? about.tokens;
    about.finish = choice?.finish_reason ?? about.finish;
    answer.text += delta.content ?? delta.refusal ?? "";
    answer.reasoning += delta.reasoning_content ?? delta.reasoning ?? "";
    for (const piece of delta.tool_calls ?? []) {
      const call = answer.calls[piece.index ?? 0] ??= { id: "", name: "", arguments: "" };
      call.id = piece.id ?? call.id;
      call.name += piece.function?.name ?? "";
      call.arguments += piece.function?.arguments ?? "";
    }
    if (about.first == null && (answer.text || answer.reasoning || answer.calls.length)) about.first = seconds();
    about.total = seconds();
    answer.state = "streaming";
    changed();
  }
}

// The events of a stream, as JSON. What is read waits only for the end of its own line.
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      const data = line.startsWith("data:") ? line.slice(5).trim() : "";
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
  }
}
