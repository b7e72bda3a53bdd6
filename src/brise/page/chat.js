// The tab Chat.

import { html } from "./vendor/htm-preact.js";

export function Chat() {
  return html`<h1>Chat</h1>`;
}
