// The tab Switch: who answers each task, what audits found, the ledger as a time line, and the way back.

import { html, useEffect, useMemo, useRef, useState } from "./vendor/htm-preact.js";
import { post } from "./api.js";
import { EvidenceChart } from "./chart.js";
import { percent, short, time, useData } from "./data.js";
import { Command, Empty, Figures, Table, Waiting } from "./document.js";

const KINDS = { proof: "proof", certificate: "certificate", certification: "rule, not certified", cascade: "rule certified",
  switch: "switched", step: "share", raise: "more audits", tighten: "caution", context: "new context",
  changed: "other model", void: "ended", back: "rolled back", export: "exported" };
const TONES = { certificate: "good", cascade: "good", switch: "good", step: "good", raise: "unsure", tighten: "unsure",
  context: "unsure", changed: "unsure", void: "bad", back: "bad" };

export function Switch({ task, tasks }) {
  const { value, error, again } = useData("switches");
  if (!value) return html`<${Waiting} error=${error} />`;
  if (value.lines === 0 && !task) return html`<${NoLedger} />`;
  const own = value.tasks.find((each) => each.task === task), others = value.tasks.filter((each) => each.task !== task);
  const outages = value.upstreams.filter((each) => each.state !== "closed");
  return html`
    ${!value.is_whole && html`<div class="verdict bad" role="alert"><strong>${"\u2717"} The ledger is not whole</strong>
      <p>Line ${value.broken.number}: ${value.broken.reason}. What you see is what the lines before it say.</p></div>`}
    ${outages.map((each) => html`<div class="verdict unsure"><strong>? ${each.name} does not answer</strong>
      <p>The gateway leaves it alone and tries it now and then. A small model that is named by <code>--fallback</code> answers
        meanwhile.</p></div>`)}
    ${own ? html`<${Task} state=${own} harm=${value.harm[task] ?? []} shares=${value.shares} again=${again}
        mayOperate=${tasks.value?.operate} />`
      : html`<${NotSwitched} task=${task} isCertified=${value.events.some(
        (event) => event.kind === "certificate" && event.task === task)} />`}
    ${others.length > 0 && html`<section><h2>Other tasks</h2><${Table}
      columns=${["task", "answered by", "share", "audits", "evidence of harm"]} numeric=${[2, 3, 4]}
      rows=${others.map((each) => [html`<a href=${`#/switch/${encodeURIComponent(each.task)}`}>${each.task}</a>`,
        each.is_on ? each.candidate : "the large model", each.is_on ? percent(each.share) : "0 %", each.audits,
        `${short(each.evidence)} of ${short(each.alarm_level)}`])} /></section>`}
    <${Timeline} events=${value.events} task=${task} more=${value.more_events} digest=${value.last_digest}
      lines=${value.lines} />`;
}

const NoLedger = () => html`<${Empty} title="Nothing is switched"><p>There is no ledger yet: it begins with the first
  proof or switch.</p><//>`;

function NotSwitched({ task, isCertified }) {
  const quoted = task && (/^[\w.@:/-]+$/.test(task) ? task : `'${task.replaceAll("'", "'\\''")}'`);
  return html`<section class="verdict glance unsure"><p class="question">Who answers${task ? ` ${task}` : ""}?</p>
      <h1><span class="answer">0 %</span> The large model answers everything</h1>
      <p>No small model was switched in. ${isCertified ? "There is a certificate: a switch begins with 1 % of conversations."
        : "That takes a certificate, which a proof signs when it promotes."}</p></section>
    ${task && html`<${Command} text=${isCertified ? `brise switch ${quoted} --share 1` : `brise prove --task ${quoted}`} />`}`;
}

function Task({ state, harm, shares, again, mayOperate }) {
  const isOn = state.is_on, status = !isOn ? "bad" : state.evidence >= 20 || state.is_tight ? "unsure" : "good";
  const known = state.against ?? [];
  const forced = (state.forced_against ?? []).filter((text) => !known.some((one) => text.includes(one.what)));
  const headline = isOn ? `${state.candidate} answers ${percent(state.share)} of the conversations`
    : "The large model answers: the switch was taken back";
  return html`<section class=${`verdict glance ${status}`}><p class="question">Who answers ${state.task}?</p>
      <h1><span class="answer">${isOn ? percent(state.share) : "0 %"}</span> ${headline}</h1>
      <p>${isOn ? `Since ${time(state.since_s)}, ${state.forced == null ? "by a certificate" : `by force: ${state.forced}`}.`
        : `${state.ended ?? "the alarm rang"}.`}
        ${isOn && state.share < 1 && (state.why_not_up ? ` Not yet more: ${state.why_not_up}.` : " It may answer more.")}</p>
      ${known.map((one) => html`<p class="against">The ledger knows against ${`${one.candidate}: ${one.what} (line ${one.number})`}.</p>`)}
      ${forced.map((one) => html`<p class="against">It was forced against: ${one}.</p>`)}
    </section>
    <${Steps} shares=${shares} share=${isOn ? state.share : 0} />
    <${Figures} items=${[
      ["keeps", state.rule ? `confidence \u2265 ${state.rule.threshold.toFixed(3)}` : "all that is valid",
        state.rule ? `at most ${percent(state.rule.risk, 1)} wrong, certified` : "no threshold is certified"],
      ["audits", state.audits, `${percent(state.audit_probability)} of kept answers`],
      ["audited mean", state.audited_mean_of_step == null ? "none yet" : `${(100 * state.audited_mean_of_step).toFixed(1)} points`,
        `${(-100 * state.tolerance).toFixed(1)} points are tolerated`],
      ["evidence of harm", short(state.evidence), `the alarm rings at ${short(state.alarm_level)}`],
      ["certificate", state.certificate ? state.certificate.digest.slice(0, 8) : "none",
        state.certificate ? `good until ${time(state.certificate.expires_s)}` : "by force"]]} />
    <${Harm} tenures=${harm} level=${state.alarm_level} />
    ${isOn && html`<${RollBack} state=${state} again=${again} mayOperate=${mayOperate} />`}`;
}

// The steps of a switch as one bar: how much of the traffic the small model answers.
const Steps = ({ shares, share }) => html`<ol class="steps" aria-label="Share of conversations">
  ${[0, ...shares].map((step) => html`<li class=${step <= share ? "done" : null}
    aria-current=${step === share ? "step" : null}>${percent(step)}</li>`)}</ol>`;

function Harm({ tenures, level }) {
  const last = tenures[tenures.length - 1];
  const chart = useMemo(() => last && last.at.length > 1 && {
    xs: last.at.map((_, index) => last.count - last.at.length + index + 1),
    series: [{ name: "evidence of harm", values: last.evidence }],
    references: [{ value: level, name: `the alarm rings at ${short(level)}` }, { value: 20, name: "all is well below 20" }],
  }, [last, level]);
  if (!chart) return html`<p class="note">No answer was audited yet.</p>`;
  return html`<section><h2>Evidence of harm</h2><figure><${EvidenceChart} title="Evidence of harm after each audit"
      xName="audits" least=${0.01} ...${chart} />
    <figcaption>Kept answers are drawn at random and compared with the large model's. The evidence grows where they differ
      more than was tolerated; at the alarm the large model takes over by itself.</figcaption></figure></section>`;
}

// Taking a switch back: the name is typed, and it is done when the ledger says so.
function RollBack({ state, again, mayOperate }) {
  const dialog = useRef(null), [typed, setTyped] = useState(""), [reason, setReason] = useState("");
  const [sent, setSent] = useState(null), [error, setError] = useState(null);
  useEffect(() => {
    if (!sent) return undefined;
    const timer = setInterval(again, 500);
    return () => clearInterval(timer);
  }, [sent, again]);
  const submit = async (event) => {
    event.preventDefault();
    setError(null);
    try {
      await post("switch/back", { task: state.task, typed, reason });
      setSent(Date.now());
      dialog.current.close();
      again();
    } catch (failed) {
      setError(failed);
    }
  };
  const close = () => dialog.current.close();
  return html`<section class="back"><h2>Roll back</h2>
    <p>The large model answers everything again, from the next request on. Nothing is lost: the ledger gets one line.</p>
    ${mayOperate === false && html`<p class="note">Your key may not: it needs <code>--page operate</code>.</p>`}
    <button type="button" class="danger" disabled=${mayOperate === false || sent} onClick=${() => dialog.current.showModal()}>
      ${sent ? "Waiting for the ledger\u2026" : `Roll back ${state.task}`}</button>
    <dialog ref=${dialog} aria-labelledby="back-title"><form onSubmit=${submit}>
      <h2 class="plain" id="back-title">Roll back ${state.task}</h2>
      <p>${state.candidate} answers ${percent(state.share)} of the conversations. Type the task's name to take that back.</p>
      <label>Name of the task <input required autocomplete="off" spellcheck=${false} value=${typed}
        onInput=${(event) => setTyped(event.target.value)} /></label>
      <label>Reason, for the ledger <input maxlength="500" value=${reason} placeholder="by hand"
        onInput=${(event) => setReason(event.target.value)} /></label>
      ${error && html`<p class="error" role="alert">${error.text}</p>`}
      <p class="buttons"><button class="danger" disabled=${typed !== state.task}>Roll back</button>
        <button type="button" class="quiet" onClick=${close}>Leave it as it is</button></p></form></dialog></section>`;
}

function Timeline({ events, task, more, digest, lines }) {
  const [all, setAll] = useState(false);
  const shown = events.filter((event) => all || !task || event.task === task);
  return html`<section><h2>The ledger</h2>
    <p class="note">${lines === 1 ? "1 line" : `${lines} lines`}, each bound to the one before. The last one:${" "}
      <code>${digest ? digest.slice(0, 16) : "none"}</code>
      <label class="check"><input type="checkbox" checked=${all} onChange=${(event) => setAll(event.target.checked)} />
        all tasks</label></p>
    ${shown.length === 0 && html`<p>Nothing is written of this task yet.</p>`}
    <ol class="timeline" reversed>${shown.map((event) => html`<li class=${TONES[event.kind] ?? null} key=${event.number}>
      <p class="when"><time datetime=${new Date(1000 * event.at_s).toISOString()}>${time(event.at_s, true)}</time>
        <span>line ${event.number}</span></p>
      <p class="what"><strong>${KINDS[event.kind] ?? event.kind}</strong>${all ? html` <span class="tag">${event.task}</span>` : ""}
        ${event.by && html` <span class="by">${event.by}</span>`}</p>
      <p>${event.what}</p></li>`)}</ol>
    ${more > 0 && html`<p class="note">${more} older lines: <code>brise audit</code></p>`}</section>`;
}
