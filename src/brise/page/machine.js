// The tab Machine.

import { html } from "./vendor/htm-preact.js";

export function Machine() {
  return html`<h1>Machine</h1>`;
}
