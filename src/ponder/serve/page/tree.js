// Draws the tree of a run as SVG and lets one walk it: hover or focus shows a node, arrow keys go to parent, child and siblings.

import { clipped, decimals, plural, put, set, share, svg } from "./dom.js";
import { curve, drawable, place, standing } from "./layout.js";
import { meanProbability, verdictAt, worth } from "./trace.js";

const GLIDE = 260; // milliseconds in which nodes go to new places

export class TreeView {
  // `onShow(node or null)` is told what is pointed at.
  constructor(frame, onShow) {
    this.frame = frame;
    this.onShow = onShow;
    this.edges = svg("g", { class: "edges", "aria-hidden": "true" });
    this.dots = svg("g", { class: "dots" });
    this.canvas = svg("svg", { role: "tree", tabindex: "0", "aria-label": "Tree of prefixes" }, this.edges, this.dots);
    frame.append(this.canvas);
    this.parts = new Map(); // node id -> its elements and where it stands
    this.spots = new Map();
    this.active = null;
    this.scale = null; // tokens across, where another pane is compared with
    this.range = [0, 1]; // of what widths stand for
    this.token = 0;
    set(this.canvas, {
      keydown: (event) => this.keyed(event), focus: () => this.point(this.active ?? this.shownNodes()[0] ?? null), blur: () => this.unfocused(),
      pointermove: (event) => this.hover(event), pointerleave: () => this.hoverEnds(), click: (event) => this.picked(event),
    });
  }

  clear() {
    this.run = null;
    this.active = null;
    this.parts.clear();
    this.edges.replaceChildren();
    this.dots.replaceChildren();
  }

  // `isLive`: more lines may come, so the drawing grows with the run; else nodes appear where they will stay.
  draw(run, at, isLive) {
    const isSame = this.run === run;
    Object.assign(this, { run, at });
    const now = standing(run, at);
    const shown = this.chosen(run, isLive ? now : null);
    const box = { width: Math.max(240, this.frame.clientWidth), height: Math.max(120, this.frame.clientHeight - 2) };
    const { spots, height, gap } = place(run.roots, shown, { ...box, maxTokens: this.scale ?? run.maxTokens });
    set(this.canvas, { width: box.width, height, viewBox: `0 0 ${box.width} ${height}` });
    const visible = now.nodes.filter((node) => shown.has(node));
    this.update(visible, now, gap);
    this.glide(spots, isSame && isLive);
    return { drawn: visible.length, all: now.nodes.length };
  }

  // The choice among many nodes is kept until there are more of them, so that a scrubber does not pay for it.
  chosen(run, now) {
    const count = now ? now.nodes.length : run.nodes.length;
    if (this.kept?.run !== run || this.kept.count !== count || this.kept.ended !== Boolean(run.end)) {
      const whole = now ?? standing(run, run.last);
      this.kept = { run, count, ended: Boolean(run.end), shown: drawable(whole.nodes, whole.inner) };
    }
    return this.kept.shown;
  }

  update(visible, now, gap) {
    const { run, at } = this;
    const selected = now.isOver ? run.selected : null;
    const path = new Set();
    for (let node = selected; node; node = node.parent) path.add(node.id);
    const wanted = new Set(visible.map((node) => node.id));
    for (const [id, part] of this.parts) if (!wanted.has(id)) this.remove(id, part);
    for (const node of visible) {
      const part = this.parts.get(node.id) ?? this.make(node);
      const isFinal = node.finishAt <= at;
      const state = [
        "node", now.alive[node.id] ? "" : "left", path.has(node.id) ? "chosen" : "", isFinal ? "final" : "", node.finish === "budget" && isFinal ? "cut" : "",
        node.parent ? "" : "root", node === this.active ? "active" : "",
      ].filter(Boolean).join(" ");
      const value = worth(run, node, at, this.range);
      set(part.dot, { class: state, "aria-label": this.spoken(node, now), "aria-level": node.depth + 1 });
      set(part.circle, { r: Math.min(gap * 0.45, isFinal || !node.parent ? 5 : 3.5).toFixed(1) });
      if (part.edge) {
        set(part.edge, { class: state.replace("node", "edge") });
        part.edge.style.strokeWidth = `${(1 + 5 * value).toFixed(2)}px`;
      }
      put(part.label, gap >= 13 ? this.label(node, now) : "");
    }
    set(this.canvas, { "aria-activedescendant": this.active ? this.nameOf(this.active) : null });
  }

  label(node, now) {
    if (!node.parent) return this.run.roots.length < 2 ? "" : node === this.run.ownRoot ? "asked" : `prompt ${this.run.roots.indexOf(node) + 1}`;
    if (now.inner[node.id] || node.finishAt > this.at) return "";
    const answer = node.answerAt <= this.at ? node.answer : undefined;
    if (answer === null) return "no answer";
    return answer === undefined ? "" : clipped(answer, 12);
  }

  spoken(node, now) {
    const verdict = verdictAt(node, this.at);
    const parts = [
      node.parent ? plural(node.tokens, "token") : "the prompt", verdict ? `verdict ${decimals(verdict.value)}` : "",
      node.finishAt <= this.at ? `ended: ${node.finish}` : "", now.alive[node.id] ? "" : "left behind",
      node.answerAt <= this.at && node.answer ? `answer ${clipped(node.answer, 40)}` : "",
    ];
    return parts.filter(Boolean).join(", ");
  }

  nameOf(node) {
    this.prefix ??= `tree-${Math.random().toString(36).slice(2, 8)}`;
    return `${this.prefix}-${node.id}`;
  }

  make(node) {
    const circle = svg("circle", { r: 4 });
    const ring = svg("circle", { r: 9, class: "ring" });
    const label = svg("text", node.parent ? { x: 10, y: 4 } : { x: -5, y: -11 });
    const dot = svg("g", { id: this.nameOf(node), role: "treeitem" }, ring, circle, label);
    const edge = node.parent ? svg("path", {}) : null;
    if (edge) this.edges.append(edge);
    this.dots.append(dot);
    const part = { node, dot, circle, label, edge };
    this.parts.set(node.id, part);
    return part;
  }

  remove(id, part) {
    part.dot.remove();
    part.edge?.remove();
    this.parts.delete(id);
    this.spots.delete(id);
  }

  // Nodes go from where they are to `spots`; a new one starts at its parent's place.
  glide(spots, isSmooth) {
    this.token += 1;
    const token = this.token;
    const from = new Map();
    for (const [id, { node }] of this.parts) from.set(id, this.spots.get(id) ?? this.spots.get(node.parent?.id) ?? spots.get(id));
    const still = !isSmooth || matchMedia("(prefers-reduced-motion: reduce)").matches || this.parts.size > 250;
    const start = performance.now();
    const frame = (time) => {
      if (token !== this.token) return;
      const done = still ? 1 : Math.min(1, Math.max(0, (time - start) / GLIDE));
      const eased = 1 - (1 - done) ** 3;
      this.spots = new Map();
      for (const id of this.parts.keys()) {
        const [a, b] = [from.get(id), spots.get(id)];
        this.spots.set(id, { x: a.x + (b.x - a.x) * eased, y: a.y + (b.y - a.y) * eased });
      }
      this.settle();
      if (done < 1) requestAnimationFrame(frame);
    };
    frame(still ? start + GLIDE : start);
  }

  settle() {
    for (const [id, part] of this.parts) {
      const spot = this.spots.get(id);
      part.dot.setAttribute("transform", `translate(${spot.x.toFixed(1)} ${spot.y.toFixed(1)})`);
      const above = part.node.parent && this.spots.get(part.node.parent.id);
      if (part.edge && above) part.edge.setAttribute("d", curve(above, spot));
    }
  }

  shownNodes() {
    return [...this.parts.values()].map((part) => part.node);
  }

  point(node) {
    this.active = node;
    for (const part of this.parts.values()) part.dot.classList.toggle("active", part.node === node);
    set(this.canvas, { "aria-activedescendant": node ? this.nameOf(node) : null });
    this.onShow(node);
  }

  unfocused() {
    for (const part of this.parts.values()) part.dot.classList.remove("active");
  }

  keyed(event) {
    const next = this.beside(event.key);
    if (next === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    if (!next) return;
    this.point(next);
    const spot = this.spots.get(next.id);
    if (spot) this.frame.scrollTo({ top: Math.max(0, spot.y - this.frame.clientHeight / 2) });
  }

  // The node that a key leads to: null where there is none, undefined where the key means nothing here.
  beside(key) {
    const node = this.active;
    const shown = this.shownNodes();
    if (!node || !this.parts.has(node.id)) return key.startsWith("Arrow") ? shown[0] ?? null : undefined;
    if (key === "ArrowLeft") return node.parent;
    if (key === "ArrowRight") return node.children.find((child) => this.parts.has(child.id)) ?? null;
    if (key === "Home") return shown[0];
    if (key !== "ArrowUp" && key !== "ArrowDown") return undefined;
    const level = shown.filter((other) => other.depth === node.depth).sort((a, b) => this.spots.get(a.id).y - this.spots.get(b.id).y);
    return level[level.indexOf(node) + (key === "ArrowUp" ? -1 : 1)] ?? null;
  }

  nearest(event) {
    const box = this.canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    let best = null;
    let least = 24 ** 2;
    for (const [id, spot] of this.spots) {
      const far = (spot.x - x) ** 2 + (spot.y - y) ** 2;
      if (far < least && this.parts.has(id)) [least, best] = [far, this.parts.get(id).node];
    }
    return best;
  }

  hover(event) {
    const node = this.nearest(event);
    if (node && node !== this.active) this.point(node);
  }

  hoverEnds() {
    if (document.activeElement !== this.canvas) this.unfocused();
  }

  picked(event) {
    const node = this.nearest(event);
    if (node) this.point(node);
  }
}

// What width means in this run, in words.
export function legend(run, [low, high]) {
  const { unit } = run.worths;
  return high > low ? `${unit}, ${low.toFixed(2)} to ${high.toFixed(2)}` : unit;
}

// Rows [name, value] about a node, for the panel under the tree.
export function facts(run, node, at) {
  const verdict = verdictAt(node, at);
  const added = node.tokens - (node.parent?.tokens ?? 0);
  const probability = meanProbability(node);
  const rows = [
    ["tokens", node.parent ? `${node.tokens} (+${added})` : "0"],
    ["verdict", verdict ? `${decimals(verdict.value)} ${verdict.kind}` : "–"],
    ["token prob.", node.parent && probability !== null ? share(probability) : "–"],
    ["log p", node.parent ? decimals(node.logP, 2) : "–"],
    ["turn", node.parent ? String(node.turn) : "–"],
    ["end", node.finishAt <= at ? node.finish : node.children.some((child) => child.born <= at) ? "went on" : "open"],
  ];
  if (node.count > 1) rows.push(["drawn", `${node.count} times`]);
  if (node.answerAt <= at) rows.push(["answer", node.answer === null ? "none found" : clipped(node.answer, 32)]);
  for (const { kind, options, values } of node.seen.filter((seen) => seen.at <= at).slice(-1)) {
    const pairs = options.slice(0, 3).map((option, i) => `${clipped(String(option), 10)} ${decimals([values[i]].flat()[0], 2)}`);
    rows.push([kind === "score" ? "log p of" : "reading at", pairs.join(", ")]);
  }
  return rows;
}
