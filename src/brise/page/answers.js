// What was asked and what was answered, as text: the same in the tab Traffic and where answers are labelled.

import { html, useEffect, useState } from "./vendor/htm-preact.js";
import { difference } from "./difference.js";

// Two answers side by side. What only one of them says is underlined: in both alike, so that neither looks wrong.
export function Pair({ left, right, titles, about, hasContent = true }) {
  const [found, setFound] = useState(null), texts = [left, right].map((one) => one?.text ?? null);
  useEffect(() => {
    let isWanted = true;
    setFound(null);
    if (texts[0] !== null && texts[1] !== null) difference(texts[0], texts[1], () => isWanted).then((runs) => runs && isWanted && setFound(runs));
    return () => { isWanted = false; };
  }, texts);
  const sides = [left, right].filter(Boolean);
  return html`<div class="sides">${sides.map((one, index) => html`<article aria-label=${titles[index]}><h3>${titles[index]}</h3>
      ${one.error && html`<p class="error">${one.error}</p>`}
      ${one.reasoning && html`<details><summary>Thinking</summary><p class="said">${one.reasoning}</p></details>`}
      ${hasContent && html`<p class="said">${one.text === null ? "(no answer)" : found ? marked(found[index ? "right" : "left"])
        : one.text || (one.calls.length ? "" : "(an empty answer)")}</p>`}
      ${one.calls.map((call) => html`<${Call} call=${call} />`)}
      ${about?.(one)}</article>`)}</div>
    ${found && html`<p class="note">${texts[0] === texts[1] ? "The texts are the same."
      : found.isWhole ? "Marked is what only one of them says." : "They differ too much to be compared word by word."}</p>`}`;
}

const marked = (runs) => runs.map(([text, isDifferent]) => (isDifferent ? html`<mark>${text}</mark>` : text));

export const Call = ({ call }) => html`<p class="call"><strong>${call.name}</strong><code>${call.arguments}</code></p>`;

export function Messages({ messages, shown = 4 }) {
  const [all, setAll] = useState(false), list = all ? messages.list : messages.list.slice(-shown);
  const hidden = messages.left_out + messages.list.length - list.length;
  return html`<section><h2>What was asked</h2>
    ${hidden > 0 && html`<p>${messages.list.length > list.length && html`<button type="button" class="quiet" onClick=${() => setAll(true)}>
      Show ${messages.list.length - list.length} earlier messages</button>`}${messages.left_out > 0 && html` <span class="note">
      ${messages.left_out} more are before these: <code>brise log show</code></span>`}</p>`}
    ${list.map((one) => html`<article class="turn"><h3>${one.role}</h3>${one.text && html`<p class="said">${one.text}</p>`}
      ${(one.calls ?? []).map((call) => html`<${Call} call=${call} />`)}</article>`)}</section>`;
}
