// The tab Chat: a conversation with any model that the server has, and beside each answer who gave it and how fast.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { Call } from "./answers.js";
import { get } from "./api.js";
import { again, ask, clear, stop, stored, talk } from "./talk.js";
import { Markdown } from "./markdown.js";

const MODES = { hosted: "large model", small: "small model", escalated: "large model: the small one was not sure",
  degraded: "small model: the large one was out of reach", failed: "failed" };
const IMAGES = ["image/png", "image/jpeg", "image/webp", "image/gif"], MOST_IMAGES = 4, MOST_IMAGE = 3 << 20;
const SETTINGS = "brise-chat-settings";
const SENTENCE = /[.!?\u2026\u3002](?=["'\u201d)\]]*\s)|\n/g;

export function Chat() {
  const [, draw] = useState(0), [problem, setProblem] = useState(null);
  const [chosen, setChosen] = useState(stored(SETTINGS, { model: "", system: "", tools: "" })), [models, setModels] = useState(null), end = useRef(null);
  useEffect(() => {
    const changed = () => draw((old) => old + 1);
    talk.listeners.add(changed);
    return () => talk.listeners.delete(changed);
  }, []);
  useEffect(() => {
    let isSeen = true;
    get("../../v1/models", false).then((found) => isSeen && setModels(found.data ?? []), (error) => {
      if (isSeen) setProblem(error.text);
      window.dispatchEvent(new CustomEvent("brise-error", { detail: error }));
    });
    return () => { isSeen = false; };
  }, [talk.isGone]);
  const change = (more) => setChosen((old) => {
    const now = { ...old, ...more };
    sessionStorage.setItem(SETTINGS, JSON.stringify(now));
    return now;
  });
  const model = chosen.model || (models ?? [])[0]?.id || "";
  const send = (added) => {
    const [tools, why] = functions(chosen.tools);
    setProblem(why);
    if (why || !model) return false;
    const options = { model, system: chosen.system, tools };
    if (added) ask(added, options);
    else again(options);
    return true;
  };
  const messages = talk.messages, last = messages[messages.length - 1];
  const shown = `${messages.length} ${last?.text?.length} ${last?.reasoning?.length}`;
  useEffect(() => {
    const page = document.documentElement;
    if (page.scrollHeight - page.scrollTop - page.clientHeight < 240) end.current?.scrollIntoView({ block: "end" });
  }, [shown]);
  return html`<div class="chat"><h1>Chat</h1>
    <div class="filters">
      <label>Model <select value=${model} onChange=${(event) => change({ model: event.target.value })}>
        ${(models ?? []).map((one) => html`<option value=${one.id}>${one.id}</option>`)}
        ${(models ?? []).every((one) => one.id !== model) && model && html`<option value=${model}>${model}</option>`}</select></label>
      <button type="button" class="quiet" disabled=${!messages.length} onClick=${clear}>New conversation</button>
      <details><summary>System prompt and tools</summary>
        <label>System prompt <textarea rows="3" value=${chosen.system} onInput=${(event) => change({ system: event.target.value })} /></label>
        <label>Tools, a JSON list as in the API <textarea rows="4" spellcheck=${false} value=${chosen.tools}
          onInput=${(event) => change({ tools: event.target.value })} /></label></details></div>
    ${!messages.length && html`<p class="note">What you ask here is captured as the task <code>page</code>, if this server captures: it
      is no evidence for your other tasks.</p>`}
    <ol class="talk">${messages.map((one, index) => html`<li key=${index} class=${one.role}><${Message} message=${one} models=${models}
      again=${index === messages.length - 1 && !talk.running ? () => send(null) : null} /></li>`)}</ol>
    <${Announced} message=${last} />
    ${talk.isGone && html`<p class="error" role="alert">The server is gone. What was said stays here; the page tries every two seconds to
      reach it again.</p>`}
    ${problem && html`<p class="error" role="alert">${problem}</p>`}
    <${Composer} send=${send} last=${last} isRunning=${talk.running !== null} /><div ref=${end}></div></div>`;
}

// The tools that were typed, and what is wrong with them.
function functions(text) {
  if (!text.trim()) return [null, null];
  try {
    const found = JSON.parse(text);
    return Array.isArray(found) ? [found, null] : [null, "The tools are no JSON list."];
  } catch (error) {
    return [null, `The tools are no JSON: ${error.message}`];
  }
}

function Message({ message, models, again: repeat }) {
  const { role, text, images, reasoning, calls, about, state, why } = message;
  if (role !== "assistant") return html`<h2>${role === "tool" ? `Result of ${message.name}` : "You"}</h2><p class="said">${text}</p>
    ${images?.length > 0 && html`<p class="thumbs">${images.map((url) => html`<img src=${url} alt="an image that you sent" />`)}</p>`}`;
  const speed = about.tokens > 1 && about.total > about.first ? (about.tokens - 1) / (about.total - about.first) : null;
  const mark = about.fingerprint ?? models?.find((one) => one.id === about.model)?.fingerprint;
  return html`<h2>${about.model ?? "Answer"}</h2>
    ${reasoning && html`<details><summary>Thinking${state === "streaming" && !text ? "\u2026" : ""}</summary><p class="said">${reasoning}</p></details>`}
    ${text && html`<${Markdown} text=${text} />`}
    ${calls.filter(Boolean).map((call) => html`<${Call} call=${call} />`)}
    ${state === "waiting" && html`<p class="waiting">Waiting for the first word${"\u2026"}</p>`}
    ${["cut", "failed"].includes(state) && html`<p class="error">${why}</p>`}
    ${state === "stopped" && html`<p class="note">You stopped it here.</p>`}
    ${about.finish === "length" && html`<p class="note">It was cut: it came to its limit of tokens.</p>`}
    <p class="about">${[
      about.mode && html`<span>x-brise-mode <code>${about.mode}</code>${MODES[about.mode] ? `, ${MODES[about.mode]}` : ""}</span>`,
      speed && html`<span>${speed.toFixed(1)} tokens/s</span>`, about.tokens != null && html`<span>${about.tokens} tokens</span>`,
      about.first != null && html`<span>first after ${about.first.toFixed(2)} s</span>`,
      mark && html`<span>fingerprint <code>${mark.slice(0, 16)}</code></span>`,
      about.id && state === "done" && html`<a href=${`#/traffic/${about.task}/exchange/${about.id}`}>in Traffic</a>`,
      repeat && html`<button type="button" class="quiet" onClick=${repeat}>Ask again</button>`]}</p>`;
}

// Read out by screen readers, in whole sentences while the answer comes.
function Announced({ message }) {
  const text = message?.role === "assistant" ? message.text : "", state = message?.state;
  const done = useRef({ message: null, at: 0, said: "" }), now = done.current;
  if (now.message !== message) Object.assign(now, { message, at: text && state !== "streaming" ? text.length : 0, said: "" });
  const ends = [...text.slice(now.at).matchAll(SENTENCE)], last = ends[ends.length - 1];
  const to = ["waiting", "streaming", undefined].includes(state) ? (last ? now.at + last.index + 1 : now.at) : text.length;
  if (to > now.at) Object.assign(now, { said: text.slice(now.at, to), at: to });
  return html`<div class="unseen" aria-live="polite">${now.said}</div>`;
}

function Composer({ send, last, isRunning }) {
  const [text, setText] = useState(""), [images, setImages] = useState([]), [problem, setProblem] = useState(null);
  const calls = last?.state === "done" ? last.calls.filter(Boolean) : [], [results, setResults] = useState({});
  const add = async (files) => {
    setProblem(null);
    const found = [];
    for (const file of files) {
      if (!IMAGES.includes(file.type)) setProblem(`${file.name} is no PNG, JPEG, WebP or GIF.`);
      else if (file.size > MOST_IMAGE) setProblem(`${file.name} has ${(file.size / 2 ** 20).toFixed(1)} MB, 3 MB are allowed.`);
      else if (images.length + found.length >= MOST_IMAGES) setProblem(`${MOST_IMAGES} images are allowed.`);
      else found.push(await new Promise((done) => {
        const reader = new FileReader();
        reader.onload = () => done(reader.result);
        reader.readAsDataURL(file);
      }));
    }
    setImages((old) => [...old, ...found]);
  };
  const submit = (event) => {
    event?.preventDefault();
    if (isRunning || (!text.trim() && !images.length && !calls.length)) return;
    const answered = calls.map((call) => ({ role: "tool", id: call.id, name: call.name, text: results[call.id] ?? "" }));
    const said = text.trim() || images.length ? [{ role: "user", text, images }] : [];
    if (send([...answered, ...said])) {
      setText("");
      setImages([]);
      setResults({});
    }
  };
  const pressed = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) submit(event);
    if (event.key === "Escape" && isRunning) stop();
  };
  const pasted = (event) => {
    const files = [...event.clipboardData.files];
    if (!files.length) return;
    event.preventDefault();
    add(files);
  };
  return html`<form class="composer" onSubmit=${submit}>
    ${calls.map((call) => html`<label>Result of ${call.name} <textarea rows="2" value=${results[call.id] ?? ""}
      onInput=${(event) => setResults({ ...results, [call.id]: event.target.value })} /></label>`)}
    <label>Message <textarea rows="3" value=${text} onInput=${(event) => setText(event.target.value)} onKeyDown=${pressed} onPaste=${pasted}
      aria-describedby="chat-keys" /></label>
    ${images.length > 0 && html`<p class="thumbs">${images.map((url, index) => html`<span><img src=${url} alt=${`image ${index + 1}`} />
      <button type="button" class="quiet" onClick=${() => setImages(images.filter((_, at) => at !== index))}>Remove image ${index + 1}</button></span>`)}</p>`}
    ${problem && html`<p class="error" role="alert">${problem}</p>`}
    <p class="buttons">${isRunning ? html`<button type="button" class="danger" onClick=${stop}>Stop</button>`
      : html`<button>Send</button>`}
      <label class="file">Images <input type="file" accept=${IMAGES.join(",")} multiple onChange=${(event) => {
        add([...event.target.files]);
        event.target.value = "";
      }} /></label>
      <span class="note" id="chat-keys">Enter sends, Shift and Enter begin a new line, Escape stops.</span></p></form>`;
}
