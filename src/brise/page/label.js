// Labelling: which of two answers is good, with one key. Whose is which, only the server knows.

import { html, useCallback, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { Messages, Pair } from "./answers.js";
import { get, post } from "./api.js";
import { count } from "./data.js";
import { Empty, Waiting } from "./document.js";

const CHOICES = [["a", "a", "A is good"], ["b", "b", "B is good"], ["+", "both", "Both are"], ["-", "neither", "Neither is"], ["s", null, "Skip"]];

export function Label({ task, back, rights }) {
  const [queue, setQueue] = useState(null), [at, setAt] = useState(0), [question, setQuestion] = useState(null);
  const [error, setError] = useState(null), [given, setGiven] = useState(0), area = useRef(null), isBusy = useRef(false);
  const failed = (found) => {
    setError(found);
    window.dispatchEvent(new CustomEvent("brise-error", { detail: found }));
  };
  const load = useCallback(() => get(`labels?task=${encodeURIComponent(task)}`, false).then((found) => {
    setQueue(found);
    setAt(0);
    setGiven(0);
    setError(null);
  }, failed), [task]);
  useEffect(() => { load(); }, [load]);
  const name = queue?.questions[at];
  useEffect(() => {
    let isWanted = true;
    setQuestion(null);
    if (name) {
      get(`labels/${name}`, false).then((found) => {
        if (!isWanted) return;
        setQuestion(found);
        area.current?.focus();
      }, (found) => (found.status === 404 ? load() : failed(found)));
    }
    return () => { isWanted = false; };
  }, [name, load]);
  const say = async (choice) => {
    if (isBusy.current || !question) return;
    isBusy.current = true;
    try {
      if (choice) {
        await post("label", { question: name, choice });
        setGiven((old) => old + 1);
      }
      setError(null);
      if (at + 1 < queue.questions.length) setAt(at + 1);
      else await load();
    } catch (found) {
      failed(found);
    }
    isBusy.current = false;
  };
  const pressed = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
    const found = CHOICES.find(([key]) => key === event.key.toLowerCase() || (key === "+" && event.key === "="));
    if (!found || rights?.operate === false) return;
    event.preventDefault();
    say(found[1]);
  };
  const leave = html`<p><a href=${back}>${"\u2190"} All requests</a></p>`;
  if (error && !question) return html`${leave}<${Waiting} error=${error} />`;
  if (!queue) return html`${leave}<h1>Label answers of ${task}</h1><${Waiting} />`;
  const { judged, differing, needed } = queue.summary, left = queue.number - at;
  const far = html`<p class="note" role="status">${count(judged + given)} of ${count(differing)} pairs that differ are judged; the plan
    for 2 points needs about ${count(needed)}.</p>`;
  if (!name) return html`${leave}<${Empty} title="Nothing is left to label"><p>Of all pairs of ${task} that differ, a
    verdict or an outcome is known.</p>${far}<//>`;
  return html`${leave}<div ref=${area} tabindex="-1" class="label" onKeyDown=${pressed} role="group" aria-label="Question">
    <h1>Which answer is good?</h1>
    <p>${count(left)} ${left === 1 ? "question is" : "questions are"} left of ${task}. Nobody sees whose answer is which.
      Some come twice, to see how steady the verdicts are.</p>
    ${question ? html`<${Messages} messages=${{ left_out: question.left_out, list: question.messages }} />
      <${Pair} left=${question.a} right=${question.b} titles=${["A", "B"]} />` : html`<${Waiting} />`}
    <p class="buttons choices">${CHOICES.map(([key, choice, text]) => html`<button type="button" class=${choice ? null : "quiet"}
      aria-keyshortcuts=${key} disabled=${!question || rights?.operate === false} onClick=${() => say(choice)}><kbd>${key}</kbd> ${text}</button>`)}</p>
    ${rights?.operate === false && html`<p class="note">Your key may not: it needs <code>--page operate</code>.</p>`}
    ${error && html`<p class="error" role="alert">${error.text}</p>`}${far}</div>`;
}
