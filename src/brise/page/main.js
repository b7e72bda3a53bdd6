// The page: its frame, the tabs, the task, and what it says when the server is gone or wants a key.

import { html, render, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { key, setKey } from "./api.js";
import { Chat } from "./chat.js";
import { link, useData } from "./data.js";
import { Machine } from "./machine.js";
import { Proof } from "./proof.js";
import { Switch } from "./switch.js";
import { Traffic } from "./traffic.js";

const TABS = { proof: ["Proof", Proof], switch: ["Switch", Switch], traffic: ["Traffic", Traffic],
  machine: ["Machine", Machine], chat: ["Chat", Chat] };

// Where the page is: #/TAB/TASK.
function place() {
  const [, tab, task] = location.hash.split("/");
  return { tab: Object.hasOwn(TABS, tab) ? tab : "proof", task: decoded(task) };
}

function decoded(text) {
  try {
    return text ? decodeURIComponent(text) : null;
  } catch { // no percent-encoding: somebody typed it
    return text;
  }
}

function Page() {
  const [at, setAt] = useState(place());
  const [fault, setFault] = useState(null);
  const tasks = useData("tasks", 15000);
  const main = useRef(null);
  useEffect(() => {
    const moved = () => setAt(place());
    const failed = (event) => [0, 401].includes(event.detail.status) && setFault(event.detail);
    const there = () => setFault(null);
    window.addEventListener("hashchange", moved);
    window.addEventListener("brise-error", failed);
    window.addEventListener("brise-there", there);
    return () => {
      window.removeEventListener("hashchange", moved);
      window.removeEventListener("brise-error", failed);
      window.removeEventListener("brise-there", there);
    };
  }, []);
  const known = tasks.value?.tasks ?? [];
  const task = at.task ?? known[0]?.task ?? null;
  const [name, Tab] = TABS[at.tab];
  useEffect(() => { document.title = `${name}${task ? `: ${task}` : ""} - brise`; }, [name, task]);
  if (fault?.status === 401) return html`<${KeyForm} error=${fault} />`;
  return html`
    <a class="skip" href="#main" onClick=${(event) => { event.preventDefault(); main.current.focus(); }}>
      To the content</a>
    <header class="bar">
      <a class="name" href=${link("proof", at.task)}><${Wind} />brise</a>
      <nav aria-label="Tabs">${Object.entries(TABS).map(([tab, [title]]) => html`
        <a href=${link(tab, at.task)} aria-current=${tab === at.tab ? "page" : null}>${title}</a>`)}</nav>
      ${known.length > 0 && html`<label class="task">Task <select value=${task}
        onChange=${(event) => { location.hash = link(at.tab, event.target.value); }}>
        ${known.map((each) => html`<option value=${each.task}>${each.task}</option>`)}
        ${known.every((each) => each.task !== task) && html`<option value=${task}>${task}</option>`}
      </select></label>`}
    </header>
    ${fault && html`<p class="gone" role="alert"><strong>The server does not answer.</strong> What you see is what it
      said last. The page tries again every few seconds.</p>`}
    <main id="main" tabindex="-1" ref=${main}>
      <${Tab} task=${task} tasks=${tasks} key=${`${at.tab}/${task}`} />
    </main>`;
}

function KeyForm({ error }) {
  const [text, setText] = useState("");
  const submit = (event) => {
    event.preventDefault();
    setKey(text.trim());
    window.dispatchEvent(new Event("brise-key"));
  };
  return html`<main id="main" class="key">
    <h1><${Wind} />brise</h1>
    <form onSubmit=${submit}>
      <label for="key">API key</label>
      <input id="key" type="password" autocomplete="off" required value=${text}
        onInput=${(event) => setText(event.target.value)} />
      <button>Open the page</button>
      ${key() && html`<p class="note" role="alert">${error.text}</p>`}
      <p class="note">A key of <code>--api-keys</code>, or a virtual key with <code>--page view</code>. It is kept in
        this tab until you close it, and sent to this server only.</p>
    </form></main>`;
}

const Wind = () => html`<svg class="wind" viewBox="0 0 32 32" aria-hidden="true">
  <path d="M3 12h17a4 4 0 1 0-4-4M3 18h23a4 4 0 1 1-4 4M3 24h11" /></svg>`;

const root = document.getElementById("page");
root.replaceChildren();
render(html`<${Page} />`, root);
