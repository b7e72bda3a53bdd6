// The parts of a document, as in reports by --html: verdicts, figures, tables, charts. Class names are those of
// report/components.css.

import { h, html, useState } from "./vendor/htm-preact.js";

export const Parts = ({ parts }) => parts.map((part) => html`<${Part} part=${part} />`);

export const Sections = ({ sections }) => sections.map((section) => html`
  <section><h2>${section.title}</h2><${Parts} parts=${section.parts} /></section>`);

function Part({ part }) {
  switch (part.kind) {
    case "conclusion": return html`<div class=${`verdict ${part.status}`}>
      <strong>${part.sign} ${part.headline}</strong>${part.reasons.map((reason) => html`<p>${reason}</p>`)}</div>`;
    case "figures": return html`<${Figures} items=${part.items} />`;
    case "paragraph": return html`<p>${part.text}</p>`;
    case "note": return html`<p class="note">${part.text}</p>`;
    case "bullets": return html`<ul>${part.items.map((item) => html`<li>${item}</li>`)}</ul>`;
    case "table": return html`<${Table} ...${part} />`;
    case "figure": return html`<figure><h3>${part.title}</h3>${element(part.chart)}
      ${part.caption && html`<figcaption>${part.caption}</figcaption>`}</figure>`;
    case "row": return html`<div class="charts"><${Parts} parts=${part.parts} /></div>`;
    default: return null;
  }
}

// Figures that stand out: name, value and a word about it.
export const Figures = ({ items }) => html`<dl class="numbers">${items.map(([name, value, about]) => html`
  <div><dt>${name}</dt><dd>${value}${about && html`<small>${about}</small>`}</dd></div>`)}</dl>`;

// A table whose first column names the row. A cell is a text, a mark with its sign, a code, or anything of preact's.
export function Table({ columns, rows, numeric = [], caption }) {
  const right = (index) => (numeric.includes(index) ? "n" : null);
  return html`<div class="scroll" tabindex="0" role="region" aria-label=${caption || columns.filter(Boolean).join(", ")}>
    <table>${caption && html`<caption>${caption}</caption>`}
      ${columns.some(Boolean) && html`<thead><tr>${columns.map((name, index) => (name
        ? html`<th scope="col" class=${right(index)}>${name}</th>` : html`<td></td>`))}</tr></thead>`}
      <tbody>${rows.map((row) => html`<tr>${row.map((cell, index) => (index
        ? html`<td class=${right(index)}>${shown(cell)}</td>`
        : html`<th scope="row" class=${right(index)}>${shown(cell)}</th>`))}</tr>`)}</tbody></table></div>`;
}

export const Mark = ({ status, sign, text }) => html`<span class=${`mark ${status}`}>${sign} ${text}</span>`;

function shown(cell) {
  if (cell?.status && cell.sign) return html`<${Mark} ...${cell} />`;
  return cell?.code == null ? cell : cell.code && html`<code>${cell.code}</code>`;
}

// An element from [tag, attributes, children], which the server made of a chart.
const element = ([tag, attributes, children]) => h(
  tag, attributes, ...children.map((child) => (Array.isArray(child) ? element(child) : child)));

// A command as a shell reads it, to be copied.
export function Command({ text }) {
  const [said, setSaid] = useState("");
  const copy = () => navigator.clipboard.writeText(text).then(() => setSaid("copied"), () => setSaid("not allowed"));
  return html`<p class="command"><code>${text}</code>
    <button type="button" class="quiet" onClick=${copy}>Copy</button><span role="status">${said}</span></p>`;
}

// What stands in a tab's place while there is nothing to show.
export const Empty = ({ title, children }) => html`<section class="empty"><h1>${title}</h1>${children}</section>`;

// While data are on their way, and where they cannot be had.
export function Waiting({ error }) {
  if (!error || error.status === 0 || error.status === 401) {
    return html`<p class="waiting" role="status">Loading${"\u2026"}</p>`;
  }
  return html`<${Empty} title=${error.text}>${error.hint && html`<p>${error.hint}</p>`}<//>`;
}
