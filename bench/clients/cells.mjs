// What the Node client scripts share: the questions, and a runner that prints one JSON line for each cell. See cells.py.

const env = process.env;
export const URL_ = env.CELLS_URL, MODEL = env.CELLS_MODEL, KEY = env.CELLS_KEY;
export const QUESTION = "What is 2+2?"; // the answer of SmolLM2 is short
export const LONG_STORY = "Tell a very long story about the wind.";
export const TOO_LONG = "wind ".repeat(Number(env.CELLS_TOO_LONG ?? 9000));
export const PLACES = ["Paris", "Rome"];
export const WEATHER = {
  type: "object", properties: { city: { type: "string", enum: PLACES } }, required: ["city"], additionalProperties: false,
};

export class Missing extends Error {}

export function check(claim, detail) {
  if (!claim) throw new Error(`check failed: ${JSON.stringify(detail)}`);
}

export async function run(api, cells) {
  for (const [cell, ask] of Object.entries(cells)) {
    if (env.CELLS_ONLY && !env.CELLS_ONLY.split(",").includes(cell)) continue;
    const start = performance.now();
    let result = "works", detail;
    try {
      detail = await ask();
    } catch (error) {
      [result, detail] = error instanceof Missing ? ["none", error.message] : ["fails", `${error.name}: ${error.message}`];
      if (env.CELLS_TRACE) console.error(error);
    }
    const seconds = Math.round((performance.now() - start) / 10) / 100;
    console.log(JSON.stringify({ api, cell, result, detail: String(detail ?? "").slice(0, 600), seconds }));
  }
}

export async function raises(isExpected, call, ...words) {
  let answer;
  try {
    answer = await call();
  } catch (error) {
    check(isExpected(error), `${error.name}: ${error.message}`);
    for (const word of words) check(String(error.message).includes(word), error.message);
    return error.name;
  }
  throw new Error(`no error, but ${JSON.stringify(answer)?.slice(0, 200)}`);
}

export async function sameAtOnce(ask) {
  const alone = await ask();
  const answers = await Promise.all(Array.from({ length: 16 }, ask));
  check(alone && answers.every((answer) => answer === alone), answers);
  return `${answers.length} equal answers`;
}

export function goesOn(pieces, whole) {
  check(whole && pieces.filter(Boolean).length > 2 && pieces.join("") === whole, [pieces, whole]);
  return `${pieces.length} pieces`;
}

export async function waitUntilIdle(seconds = 20) {
  for (const end = performance.now() + seconds * 1000; performance.now() < end;) {
    const answer = await fetch(`${env.CELLS_METRICS_URL}/metrics`, { headers: { authorization: `Bearer ${KEY}` } });
    const lines = (await answer.text()).split("\n").filter((line) => /^brise_engine_(running|waiting)/.test(line));
    if (lines.length && lines.every((line) => Number(line.split(" ").at(-1)) === 0)) return "the server is idle again";
    await new Promise((done) => setTimeout(done, 50));
  }
  throw new Error(`the server still computes after ${seconds} s`);
}
