// The tab Traffic: what was captured as rows by time, and one exchange with all its answers and why it was answered so.

import { html, useCallback, useEffect, useMemo, useRef, useState } from "./vendor/htm-preact.js";
import { Messages, Pair } from "./answers.js";
import { get } from "./api.js";
import { count, short, time, useData } from "./data.js";
import { Empty, Figures, Table, Waiting } from "./document.js";
import { Label } from "./label.js";

const ROW = 34, AROUND = 12; // pixels of a row, rows drawn above and below those that are seen
const MODES = { hosted: ["large model", null], small: ["small model", "good"], escalated: ["escalated", "unsure"],
  degraded: ["in an outage", "unsure"], failed: ["failed", "bad"] };
const SIGNS = { good: "\u2713", unsure: "?", bad: "\u2717" };
const STATUSES = { "": "any status", answered: "2xx: answered", refused: "4xx: refused", failed: "5xx: failed", left: "499: client left" };
const ROLES = { client: "The client\u2019s answer", shadow: "In the shadow", audit: "In an audit", reask: "Asked again",
  reanswer: "After the outage", draft: "Draft, not sent" };
const EMPTY = { rows: [], number: null, after: null, error: null, isAsking: false };

const place = () => location.hash.split("/").slice(3).map(decodeURIComponent);
const path = (task, ...parts) => ["#/traffic", ...[task, ...parts].map(encodeURIComponent)].join("/");

export function Traffic({ task, tasks }) {
  const [[what, id], setPlace] = useState(place());
  const [filter, setFilter] = useState({ all: false, modes: [], status: "", name: "" });
  useEffect(() => {
    const moved = () => setPlace(place());
    window.addEventListener("hashchange", moved);
    return () => window.removeEventListener("hashchange", moved);
  }, []);
  const query = useMemo(() => new URLSearchParams({ task: filter.all ? "" : task, modes: filter.modes.join(","),
    status: filter.status, name: filter.name }).toString(), [task, filter]);
  const list = useRows(task && query);
  const [at, setAt] = useState(0);
  useEffect(() => setAt(0), [query]);
  if (!task) return tasks.value ? html`<${Empty} title="Nothing was captured yet"><p>Requests that go through this server to
    a large model are listed here, with their answers: <code>brise serve --upstream URL</code></p><//>` : html`<${Waiting} error=${tasks.error} />`;
  if (what === "label") return html`<${Label} task=${task} back=${path(task)} rights=${tasks.value} />`;
  if (what === "exchange") {
    const beside = (far) => list.rows[list.rows.findIndex((row) => row.id === id) + far];
    return html`<${OneExchange} id=${id} key=${id} back=${path(task)} newer=${beside(-1)} older=${beside(1)}
      go=${(row) => { setAt(list.rows.indexOf(row)); location.hash = path(task, "exchange", row.id); }} />`;
  }
  return html`<h1>Traffic</h1>
    <${Filters} filter=${filter} setFilter=${setFilter} task=${task} />
    <p class="buttons"><a class="button" href=${path(task, "label")}>Label answers of ${task}</a>
      <${Newer} query=${query} list=${list} /></p>
    <${List} list=${list} at=${at} setAt=${setAt} withTask=${filter.all} open=${(row) => { location.hash = path(task, "exchange", row.id); }} />`;
}

// All rows that were asked for, in pages, each from where the last one ended.
function useRows(query) {
  const [state, setState] = useState(EMPTY), now = useRef(null), asking = useRef(false);
  const ask = useCallback(async (after) => {
    if (!query || (asking.current && after)) return null;
    const mine = after ? now.current : {};
    now.current = mine;
    asking.current = true;
    setState((old) => ({ ...old, isAsking: true }));
    let change;
    try {
      const found = await get(`traffic?${query}${after ? `&after=${encodeURIComponent(after)}` : ""}`, false);
      change = (old) => ({ rows: after ? old.rows.concat(found.rows) : found.rows, number: found.number ?? old.number,
        after: found.after, error: null, isAsking: false });
    } catch (error) {
      change = (old) => ({ ...old, error, isAsking: false });
      window.dispatchEvent(new CustomEvent("brise-error", { detail: error }));
    }
    if (now.current !== mine) return null;
    asking.current = false;
    setState(change);
    return null;
  }, [query]);
  const again = useCallback(() => ask(null), [ask]);
  useEffect(() => {
    setState(EMPTY);
    again();
    window.addEventListener("brise-key", again);
    return () => window.removeEventListener("brise-key", again);
  }, [again]);
  return { ...state, again, more: () => state.after && !state.isAsking && ask(state.after) };
}

function Filters({ filter, setFilter, task }) {
  const change = (more) => setFilter((old) => ({ ...old, ...more }));
  const timer = useRef(null);
  const typed = (event) => {
    const name = event.target.value;
    clearTimeout(timer.current);
    timer.current = setTimeout(() => change({ name }), 250);
  };
  useEffect(() => () => clearTimeout(timer.current), []);
  return html`<form class="filters" role="search" aria-label="Filters" onSubmit=${(event) => event.preventDefault()}>
    <fieldset><legend>Answered by</legend>${Object.entries(MODES).map(([mode, [name]]) => html`<label class="check">
      <input type="checkbox" checked=${filter.modes.includes(mode)} onChange=${(event) => change({ modes: event.target.checked
        ? [...filter.modes, mode] : filter.modes.filter((one) => one !== mode) })} /> ${name}</label>`)}</fieldset>
    <label>Status <select value=${filter.status} onChange=${(event) => change({ status: event.target.value })}>
      ${Object.entries(STATUSES).map(([value, name]) => html`<option value=${value}>${name}</option>`)}</select></label>
    <label>Name <input type="search" placeholder="model, subject, conversation, id" maxlength="200" spellcheck=${false}
      onInput=${typed} /></label>
    <label class="check"><input type="checkbox" checked=${filter.all} onChange=${(event) => change({ all: event.target.checked })} />
      ${" "}all tasks, not only ${task}</label></form>`;
}

// Says that there are newer rows than those that are shown: rows do not move under the pointer.
function Newer({ query, list }) {
  const { value } = useData(list.number == null ? null : `traffic/newest?${query}`);
  const isNewer = value?.id && value.id !== (list.rows[0]?.id ?? null) && !list.isAsking;
  return html`<span role="status">${isNewer && html`<button type="button" class="quiet" onClick=${list.again}>
    There are newer requests: show them</button>`}</span>`;
}

// A list of any length, of which only what is seen is drawn.
function List({ list, at, setAt, open, withTask }) {
  const { rows, number, error } = list, box = useRef(null), [top, setTop] = useState(at * ROW), [tall, setTall] = useState(480);
  useEffect(() => {
    const sizes = new ResizeObserver(([entry]) => setTall(entry.contentRect.height));
    if (!box.current) return undefined;
    sizes.observe(box.current);
    box.current.scrollTop = Math.max(at * ROW - 200, 0);
    return () => sizes.disconnect();
  }, [number === null]);
  const first = Math.max(Math.floor(top / ROW) - AROUND, 0), last = Math.min(Math.ceil((top + tall) / ROW) + AROUND, rows.length);
  useEffect(() => { if (list.after && last > rows.length - 200) list.more(); });
  if (error && !rows.length) return html`<${Waiting} error=${error} />`;
  if (number === null) return html`<${Waiting} />`;
  if (!rows.length) return html`<p>Nothing fits.</p>`;
  const step = (event) => {
    const page = Math.max(Math.floor(tall / ROW) - 2, 1);
    const far = { ArrowUp: -1, ArrowDown: 1, PageUp: -page, PageDown: page, Home: -rows.length, End: rows.length }[event.key];
    if (event.key === "Enter") open(rows[at]);
    if (!far) return;
    event.preventDefault();
    const next = Math.min(Math.max(at + far, 0), rows.length - 1), y = next * ROW, view = box.current;
    setAt(next);
    if (y < view.scrollTop) view.scrollTop = y;
    else if (y + 2 * ROW > view.scrollTop + tall) view.scrollTop = y + 2 * ROW - tall;
    setTop(view.scrollTop);
  };
  const names = [html`when <span class="wide">(${time(0).slice(-6)})</span>`, ...(withTask ? ["task"] : ["model"]), "answered by", "status", "tokens", "seconds", "also there"];
  return html`<p class="note" role="status">${count(number)} requests${number === rows.length ? "" : `, ${count(rows.length)} read`}.
      Arrow keys and Enter open one.</p>
    <div class="list" role="grid" tabindex="0" ref=${box} aria-label="Requests, the newest first" aria-rowcount=${number + 1}
      aria-activedescendant=${`row-${at}`} onKeyDown=${step} onScroll=${(event) => setTop(event.target.scrollTop)}>
      <div class="row head" role="row" aria-rowindex="1">${names.map((name, column) => html`<span role="columnheader"
        class=${`c${column}`}>${name}</span>`)}</div>
      <div class="rows" role="presentation" style=${{ height: `${rows.length * ROW}px` }}>
        ${rows.slice(first, last).map((row, number_) => { const index = first + number_; return html`<${Row} key=${row.id} row=${row} index=${index}
          isAt=${index === at} withTask=${withTask} onClick=${() => { setAt(index); open(row); }} />`; })}</div></div>`;
}

function Row({ row, index, isAt, onClick, withTask }) {
  const beside = [...new Set(row.answers), ...(row.labels ? [row.labels === 1 ? "label" : `${row.labels} labels`] : [])].join(", "), at = time(row.at_s, true);
  return html`<div class=${isAt ? "row at" : "row"} role="row" id=${`row-${index}`} aria-rowindex=${index + 2} aria-selected=${isAt}
    style=${{ transform: `translateY(${index * ROW}px)` }} onClick=${onClick}>
    <span role="gridcell" class="c0"><span class="wide">${at.slice(0, 5)}</span>${at.slice(5, 16)}<span class="wide">${at.slice(16, 19)}</span></span>
    <span role="gridcell" class="c1">${withTask ? row.task : row.served_by ?? row.model}</span>
    <span role="gridcell" class="c2"><${Mode} mode=${row.mode} /></span>
    <span role="gridcell" class="c3">${row.status}</span>
    <span role="gridcell" class="c4">${row.tokens ?? ""}</span>
    <span role="gridcell" class="c5">${row.total_s.toFixed(2)}</span>
    <span role="gridcell" class="c6">${beside}</span></div>`;
}

function Mode({ mode }) {
  const [name, status] = MODES[mode] ?? [mode, null];
  return status ? html`<span class=${`mark ${status}`}>${SIGNS[status]} ${name}</span>` : name;
}

function OneExchange({ id, back, newer, older, go }) {
  const { value, error } = useData(`exchange/${encodeURIComponent(id)}`, 1e9), title = useRef(null);
  useEffect(() => title.current?.focus(), [value !== null]);
  if (!value) return html`<p><a href=${back}>${"\u2190"} All requests</a></p><${Waiting} error=${error} />`;
  const [name, status] = MODES[value.mode] ?? [value.mode, null];
  return html`<p class="buttons"><a href=${back}>${"\u2190"} All requests</a>
      <button type="button" class="quiet" disabled=${!newer} onClick=${() => go(newer)}>Newer</button>
      <button type="button" class="quiet" disabled=${!older} onClick=${() => go(older)}>Older</button></p>
    <section class=${`verdict ${status ?? "good"}`}><h1 tabindex="-1" ref=${title}>${status ? `${SIGNS[status]} ` : ""}${value.task},
      ${" "}${time(value.at_s, true)}: ${name}</h1>${value.why.map((sentence) => html`<p>${sentence}</p>`)}</section>
    <${Sides} answers=${value.answers} hasContent=${value.has_content} />
    ${value.messages && html`<${Messages} messages=${value.messages} />`}
    ${!value.has_content && html`<p class="note">Your key may not read what was said: it needs <code>--page content</code>.</p>`}
    ${value.has_content && !value.is_kept && html`<p class="note">What was said was not kept, or its subject was forgotten.</p>`}
    ${value.labels.length > 0 && html`<section><h2>Labels</h2><${Table} columns=${["source", "who", "when", "client\u2019s answer",
      "other answer", "note"]} numeric=${[3, 4]} rows=${value.labels.map((one) => [one.source, one.who, time(one.at_s), one.score ?? "",
        one.answer_score ?? "", one.note])} /></section>`}
    ${Object.keys(value.signals).length > 0 && html`<section><h2>Signals of the small model</h2><${Table} columns=${["signal", "value"]}
      numeric=${[1]} rows=${Object.entries(value.signals).map(([signal, number]) => [signal, short(number)])} /></section>`}
    <section><h2>What surrounds it</h2><${Table} columns=${["", ""]} rows=${[...value.facts, ["id", { code: value.id }]]} /></section>`;
}

// The client's answer beside another one, with what differs between them marked.
function Sides({ answers, hasContent }) {
  const [client, ...others] = answers, [chosen, choose] = useState(0), other = others[chosen];
  return html`<section><h2>${other ? "Both answers" : "The answer"}</h2>
    ${others.length > 1 && html`<p><label>Beside it <select value=${chosen} onChange=${(event) => choose(Number(event.target.value))}>
      ${others.map((one, index) => html`<option value=${index}>${ROLES[one.role] ?? one.role}: ${one.served_by ?? "not named"}</option>`)}
      </select></label></p>`}
    <${Pair} left=${client} right=${other} titles=${[client, other].map((one) => one && `${ROLES[one.role] ?? one.role}: ${one.served_by ?? "not named"}`)}
      about=${(one) => html`<${Figures} items=${[
        ["seconds", one.total_s.toFixed(2), one.first_token_s == null ? "" : `first token ${one.first_token_s.toFixed(2)}`],
        ["tokens", one.usage?.completion_tokens ?? "not known", one.usage ? `of a prompt of ${one.usage.prompt_tokens ?? "?"}` : ""],
        ["cost", one.cost_usd == null ? "not known" : `$${Number(one.cost_usd.toPrecision(3))}`, ""]]} />
        ${one.fingerprint && html`<p class="note">fingerprint <code>${one.fingerprint.slice(0, 24)}</code></p>`}`} hasContent=${hasContent} /></section>`;
}
