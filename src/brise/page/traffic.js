// The tab Traffic.

import { html } from "./vendor/htm-preact.js";

export function Traffic() {
  return html`<h1>Traffic</h1>`;
}
