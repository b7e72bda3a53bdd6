// Markdown as HTML: marked makes it, DOMPurify cleans it, and its policy is the only one by which text may become HTML.
// Nothing in it is loaded from elsewhere: a picture is shown as its address.

import { html, useLayoutEffect, useRef } from "./vendor/htm-preact.js";
import "./vendor/dompurify.js";
import { Marked } from "./vendor/marked.js";

const TAGS = ["p", "br", "hr", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "blockquote", "pre", "code", "em", "strong",
  "del", "a", "table", "thead", "tbody", "tr", "th", "td", "span"];
const RULES = { ALLOWED_TAGS: TAGS, ALLOWED_ATTR: ["href", "start", "align", "class", "rel", "target"], ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false, ADD_URI_SAFE_ATTR: ["rel", "target", "start", "align"], ALLOWED_URI_REGEXP: /^https?:\/\//i, RETURN_TRUSTED_TYPE: true };
const escaped = (text) => String(text).replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);
const isWeb = (href) => /^https?:\/\//i.test(href ?? "");

const marked = new Marked({ gfm: true, renderer: {
  html: ({ text }) => escaped(text), // what a model writes as HTML is shown, not done
  image: ({ href, text }) => `<span class="url">[${escaped(text || "picture")}: ${escaped(href)}]</span>`,
  link({ href, tokens }) {
    const text = this.parser.parseInline(tokens);
    return isWeb(href) ? `<a href="${escaped(href)}" rel="noopener noreferrer" target="_blank">${text}</a>`
      : `${text} <span class="url">(${escaped(href)})</span>`;
  },
  checkbox: ({ checked }) => (checked ? "\u2611 " : "\u2610 "),
} });

export const clean = (text) => window.DOMPurify.sanitize(marked.parse(text), RULES);

// The blocks of a text that grows: those that have ended are kept, only the last one is read again.
class Blocks {
  constructor() {
    Object.assign(this, { text: "", done: [], start: 0 });
  }

  of(text) {
    if (!text.startsWith(this.text)) Object.assign(this, { done: [], start: 0 });
    this.text = text;
    const tokens = marked.lexer(text.slice(this.start));
    let last = tokens.length - 1;
    while (last > 0 && tokens[last].type === "space") last -= 1;
    for (const token of tokens.slice(0, Math.max(last, 0))) {
      if (token.type !== "space") this.done.push(clean(token.raw));
      this.start += token.raw.length;
    }
    const rest = text.slice(this.start);
    return rest.trim() ? [...this.done, clean(rest)] : this.done;
  }
}

export function Markdown({ text }) {
  const blocks = useRef(null);
  blocks.current ??= new Blocks();
  return html`<div class="markdown">${blocks.current.of(text).map((block, index) => html`<${Block} key=${index} block=${block} />`)}</div>`;
}

function Block({ block }) {
  const place = useRef(null), text = String(block);
  useLayoutEffect(() => { place.current.innerHTML = block; }, [text]);
  return html`<div ref=${place}></div>`;
}
