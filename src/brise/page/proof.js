// The tab Proof: may the small model take over, why not yet, what would decide it; the evidence, and its certificates.

import { html, useMemo, useRef, useState } from "./vendor/htm-preact.js";
import { download, get, post } from "./api.js";
import { EvidenceChart } from "./chart.js";
import { count, link, percent, short, time, useData } from "./data.js";
import { Command, Empty, Figures, Parts, Sections, Table, Waiting } from "./document.js";

const SIGNS = { good: "\u2713", bad: "\u2717", unsure: "?" };

export function Proof({ task, tasks }) {
  const { value, error } = useData(task && `proof?task=${encodeURIComponent(task)}`);
  if (!task) return tasks.value ? html`<${Nothing} why=${tasks.value.why} />` : html`<${Waiting} error=${tasks.error} />`;
  if (!value) return html`<${Waiting} error=${error} />`;
  return html`<${Glance} found=${value} task=${task} />
    ${value.path && html`<${Path} path=${value.path} at=${value.at_s} />`}
    ${value.document && html`<${Claim} document=${value.document} />`}
    <${Certificates} found=${value.certificates} />
    <${Report} task=${task} />`;
}

const Nothing = ({ why }) => html`<${Empty} title="Nothing was captured yet">
  <p>A small model earns the switch with your own traffic. Put brise in front of your hosted model: requests and answers
    are written down on this machine, and this page says when there is enough evidence.</p>
  <${Command} text="brise serve --upstream https://api.example.com/v1" />
  <p>Or read what you have logged already:</p>
  <${Command} text="brise log import requests.jsonl" />
  <p class="note">The demo makes traffic by itself, and proves a model on it: <code>brise demo</code></p>
  ${why && html`<p class="note">${why}</p>`}<//>`;

// The answer in one glance, and the numbers that it stands on.
function Glance({ found, task }) {
  const { summary } = found, [first, ...rest] = summary.sentences, at = first.indexOf(":") + 1;
  return html`<section class=${`verdict glance ${summary.status}`}>
      <p class="question">${summary.question}</p>
      <h1><span class="answer"><span aria-hidden="true">${SIGNS[summary.status]} </span>${first.slice(0, at - 1)}</span>
        ${" "}${first.slice(at)}</h1>
      ${rest.map((sentence) => html`<p>${sentence}</p>`)}
      ${found.against.map((one) => html`<p class="against">The ledger knows against ${one}.</p>`)}
    </section>
    <${Figures} items=${figures(summary)} />
    ${found.next && html`<h2 class="plain">What to do next</h2><p>${found.headline}.</p><${Command} text=${found.next} />`}
    <p class="note">${count(summary.conversations)} conversations of ${task}, as of ${time(found.made_s)}.
      ${summary.share > 0 && html` <a href=${link("switch", task)}>How it is switched</a>`}</p>`;
}

function figures(summary) {
  const { evidence, level } = summary;
  const labels = summary.more_labels ? `, ${count(summary.more_labels)} labels` : "";
  return [
    ["evidence K", evidence == null ? "none yet" : html`${short(evidence)} <span class="of">of ${short(level)}</span>
      <${Meter} value=${evidence} level=${level} />`, evidence == null ? "nothing was compared" : `after ${count(summary.clusters)} clusters`],
    ["still needed", summary.more_conversations == null ? "\u2013" : count(summary.more_conversations),
      summary.more_conversations == null ? (evidence != null && summary.verdict !== "not yet" ? "decided" : "not known yet") : `conversations${labels}`],
    ["saves a request", summary.saving_usd == null ? "not known" : usd(summary.saving_usd),
      summary.saving_month_usd == null ? "the machine included" : `${usd(summary.saving_month_usd)} a month`],
    ["answers now", summary.share > 0 ? summary.small_model : summary.large_model,
      summary.share > 0 && summary.share < 1 ? `${percent(summary.share)} of conversations` : "all conversations"]];
}

// How far the evidence is on its way from 0.01 to the level, on a logarithmic scale.
function Meter({ value, level }) {
  const far = Math.min(Math.max(Math.log10(Math.max(value, 0.01) / 0.01) / Math.log10(level / 0.01), 0), 1);
  return html`<span class="meter" aria-hidden="true"><span style=${{ width: `${100 * far}%` }}></span></span>`;
}

const usd = (value) => `${value < 0 ? "-" : ""}$${Math.abs(value) >= 1 ? Math.abs(value).toLocaleString("en-US", {
  minimumFractionDigits: 2, maximumFractionDigits: 2 }) : Number(Math.abs(value).toPrecision(2))}`;

function Path({ path, at }) {
  const series = useMemo(() => [{ name: "for the switch", values: path.for }, { name: "against it", values: path.against }],
    [path]);
  const references = useMemo(() => [{ value: path.level, name: `promotes at ${short(path.level)}` },
    ...(path.end && path.end !== path.level ? [{ value: path.end, name: `ends at ${short(path.end)}` }] : [])], [path]);
  return html`<section><h2>Path of the evidence</h2>
    <figure><${EvidenceChart} title="Evidence after each cluster" xs=${path.at} xName="clusters" series=${series}
      references=${references} />
    <figcaption>The wealth of a bettor who bets that the small model is within the margin, and of one who bets that it is
      not. Over its line either decides, whenever one looks. ${path.decided_at ? `Decided after ${count(
        path.decided_at)} clusters.` : "Not decided yet."} Compared on ${time(at)}.</figcaption></figure></section>`;
}

// The proof in words and tables. Its path is drawn above.
function Claim({ document }) {
  const sections = document.sections.map((section) => (section.title === "Evidence"
    ? { ...section, parts: section.parts.filter((part) => part.kind !== "figure") } : section));
  return html`<section><h2>The claim</h2><p class="lead">${document.lead}</p><${Parts} parts=${document.top} /></section>
    <${Sections} sections=${sections} />`;
}

function Certificates({ found }) {
  const [checked, setChecked] = useState(null), file = useRef(null);
  const verify = async (name, text) => {
    setChecked({ name });
    try {
      setChecked({ name, ...await post("verify", { certificate: await text }) });
    } catch (error) {
      setChecked({ name, error });
    }
  };
  const stored = async (digest) => JSON.stringify(await get(`certificate/${digest}`), null, 1);
  const rows = found.map((each) => (each.why ? [each.digest.slice(0, 8), { status: "bad", sign: SIGNS.bad, text: each.why }]
    : [each.digest.slice(0, 8), each.small_model, each.claim, count(each.clusters),
    each.is_expired ? { status: "bad", sign: SIGNS.bad, text: `expired ${each.expires}` } : each.expires,
    html`<span class="buttons">
      <button type="button" class="quiet" aria-label=${`Download the certificate ${each.digest.slice(0, 8)}`}
        onClick=${() => download(`certificate/${each.digest}`, `certificate-${each.digest.slice(0, 8)}.json`)}>
        Download</button>
      <button type="button" class="quiet" aria-label=${`Verify the certificate ${each.digest.slice(0, 8)}`}
        onClick=${() => verify(each.digest.slice(0, 8), stored(each.digest))}>Verify</button></span>`]));
  return html`<section><h2>Certificates</h2>
    ${rows.length ? html`<${Table} columns=${["digest", "small model", "claim", "clusters", "good until", "file"]}
        rows=${rows} numeric=${[3]} caption="Signed by this machine, in the ledger" />`
      : html`<p>There is none yet: <code>brise prove</code> signs one when it promotes.</p>`}
    <p><label class="file">Verify a file <input type="file" accept=".json,application/json" ref=${file}
      onChange=${() => file.current.files[0] && verify(file.current.files[0].name, file.current.files[0].text())} />
    </label></p>
    <div role="status">${checked && html`<${Checked} checked=${checked} />`}</div></section>`;
}

function Checked({ checked }) {
  const { name, error, checks } = checked, why = error?.text ?? checked.why;
  if (why) return html`<div class="verdict bad"><strong>${SIGNS.bad} ${name} is no certificate that can be checked</strong>
    <p>${why}</p></div>`;
  if (!checks) return html`<p class="waiting">Verifying ${name}: signature, path, ledger and data${"\u2026"}</p>`;
  const isWrong = checks.some((check) => check.passed === false);
  const sign = { true: ["good", SIGNS.good, "ok"], false: ["bad", SIGNS.bad, "wrong"], null: ["unsure", "?", "not looked at"] };
  return html`<div class=${`verdict ${isWrong ? "bad" : "good"}`}>
    <strong>${isWrong ? SIGNS.bad : SIGNS.good} ${name}: ${isWrong ? "a check failed" : "no check failed"}</strong>
    <p>${checked.claim}</p></div>
    <${Table} columns=${["check", "", "what it says"]} rows=${checks.map((check) => {
      const [status, mark, text] = sign[String(check.passed)];
      return [check.check, { status, sign: mark, text }, check.said];
    })} />`;
}

// The whole report, read when it is wanted.
function Report({ task }) {
  const [isOpen, setOpen] = useState(false);
  const { value, error } = useData(isOpen ? `report?task=${encodeURIComponent(task)}` : null, 30000);
  return html`<details onToggle=${(event) => setOpen(event.target.open)}>
    <summary><h2 class="plain">The whole report</h2></summary>
    ${isOpen && (value ? html`<p class="lead">${value.lead}</p><${Parts} parts=${value.top} />
      <${Sections} sections=${value.sections} />` : html`<${Waiting} error=${error} />`)}</details>`;
}
