// What the page asks the server, with the key that the user gave. It reads nothing from any other address.

const KEY = "brise-key";
const known = new Map(); // by path: the ETag and the value of the last answer
const BASE = new URL("api/", document.baseURI);
const WAIT_MS = 60000;

export class ApiError extends Error {
  constructor(status, code, message) {
    super(message);
    const [text, hint] = message.split("\nhint: ");
    Object.assign(this, { status, code, text, hint });
  }
}

export const key = () => sessionStorage.getItem(KEY);

export function setKey(text) {
  known.clear();
  if (text) sessionStorage.setItem(KEY, text);
  else sessionStorage.removeItem(KEY);
}

// Headers of every request: the key is never in a cookie or an address.
export function headers(more) {
  const own = key();
  return own ? { ...more, authorization: `Bearer ${own}` } : { ...more };
}

// The JSON at a path below /page/api/. Asked again, it is the same object as long as the server says the same; what is
// large, and asked for once, need not be kept for that.
export async function get(path, isKept = true) {
  const last = known.get(path);
  const answer = await ask(path, { headers: headers(last ? { "if-none-match": last.etag } : {}) });
  if (answer.status === 304 && last) return last.value;
  const value = await answer.json();
  if (isKept) known.set(path, { etag: answer.headers.get("etag"), value });
  return value;
}

export async function post(path, body) {
  const answer = await ask(path, {
    method: "POST", headers: headers({ "content-type": "application/json" }), body: JSON.stringify(body) });
  return answer.json();
}

// Saves a file under its name.
export async function download(path, name) {
  const answer = await ask(path, { headers: headers() });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await answer.blob());
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(new URL(path, BASE), {
      ...options, cache: "no-store", credentials: "omit", redirect: "error", signal: AbortSignal.timeout(WAIT_MS) });
  } catch {
    throw new ApiError(0, "gone", "The server does not answer.");
  }
  if (answer.ok || answer.status === 304) return answer;
  throw await failure(answer);
}

// The error of an answer, in the server's words.
export async function failure(answer) {
  const body = await answer.json().catch(() => null);
  const error = body?.error ?? {};
  return new ApiError(answer.status, error.code ?? "", error.message ?? `The server answers ${answer.status}.`);
}
