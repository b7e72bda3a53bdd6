// The difference of two texts, word by word. It is computed in pieces: however long they are, the page can be used.

const PIECE_MS = 8, LOOK = 4096; // steps between looks at the clock
const MOST_EDITS = 2000; // with more, all between the common beginning and end counts as different

const words = (text) => text.match(/[\p{L}\p{N}_]+|\s+|./gsu) ?? [];

// Runs of both texts, [text, isDifferent] each: {left, right, isWhole}; null if `isWanted` says no meanwhile.
export async function difference(left, right, isWanted = () => true) {
  const a = words(left), b = words(right), pause = pauses();
  let start = 0, endA = a.length, endB = b.length;
  while (start < endA && start < endB && a[start] === b[start]) start += 1;
  while (endA > start && endB > start && a[endA - 1] === b[endB - 1]) { endA -= 1; endB -= 1; }
  const marksA = new Uint8Array(a.length).fill(1, start, endA), marksB = new Uint8Array(b.length).fill(1, start, endB);
  const trace = await steps(a.slice(start, endA), b.slice(start, endB), pause, isWanted);
  if (trace === null) return null;
  unmark(trace, endA - start, endB - start, (x, y) => { marksA[start + x] = 0; marksB[start + y] = 0; });
  return { left: runs(a, marksA), right: runs(b, marksB), isWhole: trace.length > 0 };
}

// Myers' greedy search: how far each diagonal comes with 0, 1, 2... edits. Empty if there are too many edits.
async function steps(a, b, pause, isWanted) {
  const far = new Int32Array(2 * MOST_EDITS + 3), zero = MOST_EDITS + 1, trace = [];
  let count = 0;
  for (let edits = 0; edits <= MOST_EDITS; edits += 1) {
    trace.push(far.slice(zero - edits - 1, zero + edits + 2));
    for (let k = -edits; k <= edits; k += 2) {
      const isDown = k === -edits || (k !== edits && far[zero + k - 1] < far[zero + k + 1]);
      let x = isDown ? far[zero + k + 1] : far[zero + k - 1] + 1;
      while (x < a.length && x - k < b.length && a[x] === b[x - k]) { x += 1; count += 1; }
      far[zero + k] = x;
      if (x >= a.length && x - k >= b.length) return trace;
      count += 1;
      if (count >= LOOK) {
        count = 0;
        await pause();
        if (!isWanted()) return null;
      }
    }
  }
  return [];
}

// Walks the way back, and calls `same` for each word that both texts have.
function unmark(trace, lengthA, lengthB, same) {
  let x = lengthA, y = lengthB;
  for (let edits = trace.length - 1; edits >= 0; edits -= 1) {
    const far = trace[edits], zero = edits + 1, k = x - y;
    const isDown = k === -edits || (k !== edits && far[zero + k - 1] < far[zero + k + 1]);
    const before = edits === 0 ? 0 : far[zero + k + (isDown ? 1 : -1)], start = edits === 0 || isDown ? before : before + 1;
    while (x > start) same(x -= 1, y -= 1);
    x = before;
    y = before - k - (isDown ? 1 : -1);
  }
}

function runs(parts, marks) {
  const found = [];
  for (let at = 0; at < parts.length; at += 1) {
    const last = found[found.length - 1];
    if (last && last[1] === marks[at]) last[0].push(parts[at]);
    else found.push([[parts[at]], marks[at]]);
  }
  return found.map(([some, mark]) => [some.join(""), mark === 1]);
}

// A function that gives the browser its turn, if it has waited long enough.
function pauses() {
  let since = performance.now();
  return async () => {
    if (performance.now() - since < PIECE_MS) return;
    await new Promise((done) => { setTimeout(done); });
    since = performance.now();
  };
}
