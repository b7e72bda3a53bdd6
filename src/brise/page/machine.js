// The tab Machine: what lies where in memory, and the state of everything that answers.

import { html } from "./vendor/htm-preact.js";
import { useData } from "./data.js";
import { Sections, Table, Waiting } from "./document.js";

export function Machine() {
  const { value, error } = useData("machine");
  if (!value) return html`<${Waiting} error=${error} />`;
  return html`<h1>Machine</h1>
    <p class="lead">This process has taken ${value.peak} of memory at most so far.</p>
    ${value.plans.map((plan) => html`<${Plan} plan=${plan} />`)}
    <${Sections} sections=${value.sections} />`;
}

// The plan's own terms as one bar, with their letters, so that colours carry nothing alone.
function Plan({ plan }) {
  const width = (bytes) => ({ width: `${(100 * bytes) / plan.whole}%` });
  const rows = plan.terms.map((term, index) => [html`<span class=${`swatch t${index % 5}`} aria-hidden="true">${term.letter}</span> ${term.name}`,
    term.format, term.size, `${((100 * term.bytes) / plan.whole).toFixed(1)} %`]);
  return html`<section><h2>Memory</h2><p class=${plan.fits ? null : "error"}><strong>${plan.headline}</strong></p>
    <div class="plan" aria-hidden="true">${plan.terms.map((term, index) => html`<span class=${`t${index % 5}`} style=${width(term.bytes)}
      title=${`${term.name}: ${term.size}`}>${term.bytes > plan.whole / 40 ? term.letter : ""}</span>`)}</div>
    <${Table} columns=${["part", "format", "size", `share of the ${plan.limit ? "limit" : "sum"}`]} rows=${rows} numeric=${[2, 3]} /></section>`;
}
