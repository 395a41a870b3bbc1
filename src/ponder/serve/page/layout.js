// Where the nodes of a run stand: across by tokens, down by branch. Pure numbers in, pure numbers out.

export const MOST_NODES = 420;
const LEAST_FIT = 6; // pixels a row: below this the drawing is scrolled
const ROW = 10;

// As of line `at`: the nodes that exist, which of them are still in play, and whether anything is below them yet.
// A leaf is left behind when a later turn went on without it, or when the run ended without returning it.
export function standing(run, at) {
  const step = run.steps[at];
  const nodes = run.nodes.slice(0, upTo(run.nodes, at));
  const alive = new Uint8Array(nodes.length);
  const inner = new Uint8Array(nodes.length);
  const isOver = step?.kind === "end";
  for (const node of nodes) if (node.parent) inner[node.parent.id] = 1;
  for (let i = nodes.length - 1; i >= 0; i -= 1) {
    const node = nodes[i];
    const isAnswer = node.finishAt <= at && node.finish !== "budget";
    const own = isOver ? node.candidate >= 0 : isAnswer || (!inner[i] && node.turn >= (step?.grownBy ?? 0));
    if (own) alive[i] = 1;
    if (alive[i] && node.parent) alive[node.parent.id] = 1;
  }
  return { nodes, alive, inner, isOver };
}

// Number of nodes born at or before line `at`; they stand in the order of their birth.
function upTo(nodes, at) {
  let low = 0;
  let high = nodes.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (nodes[middle].born <= at) low = middle + 1;
    else high = middle;
  }
  return low;
}

// At most MOST_NODES of `nodes`, whole branches: first what was returned, then leaves spread evenly over the run.
export function drawable(nodes, inner, most = MOST_NODES) {
  if (nodes.length <= most) return new Set(nodes);
  const leaves = nodes.filter((node) => !inner[node.id]);
  const returned = leaves.filter((node) => node.candidate >= 0).sort((a, b) => a.candidate - b.candidate);
  const rest = leaves.filter((node) => node.candidate < 0);
  const chosen = new Set();
  for (const leaf of [...returned.slice(0, most / 4), ...spread(rest), ...returned]) {
    const branch = [];
    for (let node = leaf; node && !chosen.has(node); node = node.parent) branch.push(node);
    if (chosen.size + branch.length <= most) branch.forEach((node) => chosen.add(node));
    if (chosen.size >= most) break;
  }
  return chosen;
}

// The newest first, then halves of what is between, so that any beginning of the list is spread over all of it.
function spread(items) {
  const order = [];
  for (let stride = 1 << Math.ceil(Math.log2(items.length + 1)); stride >= 1; stride >>= 1) {
    for (let i = items.length - 1; i >= 0; i -= stride) order.push(items[i]);
  }
  return [...new Set(order)];
}

// {x, y} by node id, x and y in pixels, and the height that was needed.
export function place(roots, shown, { width, height, maxTokens, left = 14, right = 92, top = 16 }) {
  const rows = new Map();
  let count = 0;
  for (const root of roots.filter((node) => shown.has(node))) count = lineUp(root, shown, rows, count);
  const fit = (height - 2 * top) / Math.max(1, count);
  const gap = fit < LEAST_FIT ? ROW : Math.min(64, fit);
  const used = Math.max(height, count * gap + 2 * top);
  const start = (used - count * gap) / 2 + gap / 2;
  const across = (width - left - right) / maxTokens;
  const spots = new Map();
  for (const [node, row] of rows) spots.set(node.id, { x: left + node.tokens * across, y: start + row * gap });
  return { spots, height: used, gap };
}

// Rows of one tree: a leaf takes the next, an inner node stands in the middle of its children. No recursion: branches are long.
function lineUp(root, shown, rows, count) {
  const stack = [[root, false]];
  while (stack.length) {
    const [node, isDone] = stack.pop();
    const children = node.children.filter((child) => shown.has(child));
    if (!children.length) rows.set(node, count++);
    else if (isDone) rows.set(node, (rows.get(children[0]) + rows.get(children.at(-1))) / 2);
    else {
      stack.push([node, true]);
      for (let i = children.length - 1; i >= 0; i -= 1) stack.push([children[i], false]);
    }
  }
  return count;
}

export function curve(from, to) {
  const bend = Math.max(6, (to.x - from.x) * 0.5);
  return `M${from.x.toFixed(1)} ${from.y.toFixed(1)}C${(from.x + bend).toFixed(1)} ${from.y.toFixed(1)} ${(to.x - bend).toFixed(1)} ${to.y.toFixed(1)} ${to.x.toFixed(1)} ${to.y.toFixed(1)}`;
}
