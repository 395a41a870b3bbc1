// One run: what was asked, the answer, its cost, the tree, the replay, what is pointed at, and the answers by votes.

import { CostView, none, spent } from "./cost.js";
import { clipped, decimals, el, fill, find, plural, put, set, share, whole } from "./dom.js";
import { Player } from "./player.js";
import { groups, jobs, parse, piece, Run } from "./trace.js";
import { facts, legend, TreeView } from "./tree.js";

export const STOPS = { done: "done", tokens: "budget: tokens", seconds: "budget: seconds", flops: "budget: compute", usd: "budget: money", calls: "budget: calls" };

export class Pane {
  // `onChange`: something that a pane beside it must know (its scale) has changed. `onClose`: somebody closes it.
  constructor(name, { onChange, onClose }) {
    Object.assign(this, { name, onChange, onClose, lines: [], run: null, isLive: false, guarantee: null, started: 0, scale: {} });
    this.cost = new CostView();
    this.player = new Player((at) => this.draw(at));
    this.build();
    this.tree = new TreeView(this.frame, (node) => this.describe(node));
    new ResizeObserver(() => this.run && this.draw(Math.floor(this.player.at))).observe(this.frame);
    this.empty();
  }

  build() {
    this.title = el("h2", {}, "");
    this.badge = el("span", { class: "badge", hidden: true });
    this.status = el("span", { class: "status", role: "status" });
    this.pick = el("select", { "aria-label": "Job of the trace", hidden: true, change: () => this.choose(this.pick.value) });
    this.save = el("button", { type: "button", class: "quiet", click: () => this.download() }, "Save trace");
    this.close = el("button", { type: "button", class: "quiet", "aria-label": `Close ${this.name}`, click: () => this.onClose(this) }, "Close");
    this.question = el("p", { class: "question" });
    this.answer = el("div", { class: "answer" });
    this.more = el("details", { class: "whole", open: true, hidden: true }, el("summary", {}), el("pre", { tabindex: "0", "aria-label": "Whole answer" }));
    this.notice = el("p", { class: "notice", role: "alert", hidden: true });
    this.frame = el("div", { class: "frame" });
    this.key = el("p", { class: "key" });
    this.detail = el("div", { class: "detail", "aria-live": "polite" });
    this.votes = el("section", { class: "votes", "aria-label": "Answers" });
    this.facts = el("details", { class: "facts" }, el("summary", {}, "Diagnostics and settings"), el("dl", {}));
    this.blank = el("div", { class: "blank" });
    this.body = el(
      "div", { class: "body" },
      el("header", {}, el("div", { class: "names" }, this.title, this.badge, this.status), el("div", { class: "acts" }, this.pick, this.save, this.close)),
      this.question, this.notice, this.answer, this.cost.root, el("section", { class: "growth", "aria-label": "Tree" }, this.frame, this.player.root, this.key),
      this.detail, el("div", { class: "results" }, this.more, this.votes, this.facts),
    );
    this.root = el("article", { class: "pane", "aria-label": this.name }, this.blank, this.body);
  }

  // Nothing to show; `children` say what could be.
  empty(...children) {
    Object.assign(this, { lines: [], run: null, isLive: false });
    this.tree?.clear();
    this.body.hidden = true;
    this.blank.hidden = false;
    fill(this.blank, ...children);
    this.root.classList.add("is-empty");
  }

  // A message in place of the run, such as why there is none.
  fail(title, text, ...acts) {
    if (this.run) {
      this.isLive = false;
      this.tell(`${title} ${text}`);
      this.draw(Math.floor(this.player.at));
      return;
    }
    this.empty(el("div", { class: "problem", role: "alert" }, el("h2", {}, title), el("p", {}, text), el("div", { class: "acts" }, ...acts)));
  }

  tell(text) {
    this.notice.hidden = !text;
    put(this.notice, text ?? "");
  }

  // A stored trace as text. Returns whether there was a run in it.
  load(text, { at = null } = {}) {
    const { lines, bad } = parse(text);
    const found = jobs(lines);
    const useful = [...found].filter(([, own]) => own.some(({ value }) => value.recipe || value.ask));
    if (!useful.length) return false;
    this.found = new Map(useful);
    fill(this.pick, ...useful.map(([job]) => el("option", { value: job }, clipped(job, 40))));
    this.choose(useful[0][0], at);
    this.pick.hidden = useful.length < 2;
    this.tell(bad.length ? `${plural(bad.length, "line")} could not be read (first: line ${bad[0]}) and ${bad.length === 1 ? "was" : "were"} left out.` : "");
    return true;
  }

  choose(job, at = null) {
    this.begin({ isLive: false });
    for (const line of this.found.get(job)) this.take(line);
    this.player.open(this.run.last, false);
    if (at !== null) this.player.go(at);
    this.changed();
  }

  // Starts an empty run, live or from a trace.
  begin({ isLive, label = "", question = "", budget = {} }) {
    this.tree.clear();
    Object.assign(this, { run: new Run(), lines: [], isLive, asked: { label, question, budget }, said: "", started: performance.now(), stopped: null });
    this.tell("");
    this.pick.hidden = true;
    this.blank.hidden = true;
    this.body.hidden = false;
    this.root.classList.remove("is-empty");
    this.detail.scrollTop = 0;
    if (isLive) this.player.open(0, true);
    this.describe(null);
    this.draw(0);
  }

  take(line) {
    this.lines.push(line.raw);
    this.run.add(line.value);
  }

  // A line of a live run; the drawing follows with the next frame.
  live(line) {
    this.take(line);
    this.later();
  }

  // Text of the best answer so far, as it streams.
  say(text) {
    this.said = text;
    this.later();
  }

  later() {
    if (this.isDue) return;
    this.isDue = true;
    requestAnimationFrame(() => {
      this.isDue = false;
      if (!this.run) return;
      this.player.grown(this.run.last);
      if (!this.player.isFollowing) this.draw(Math.floor(this.player.at));
      this.changed();
    });
  }

  // The clock of a live run.
  tick() {
    if (this.run && this.isLive) this.priced(this.run.steps[Math.floor(this.player.at)]);
  }

  priced(step) {
    const seconds = this.isLive ? (performance.now() - this.started) / 1000 : this.stopped;
    this.cost.draw(step?.cost ?? none(), this.limits, { scale: Math.max(this.scale.tokens ?? 0, this.extent.tokens), seconds });
  }

  // At the end of a run of the server's: how long it took there, or why there is nothing.
  clocked(summary) {
    if (!summary || !this.run) return;
    this.stopped = summary.seconds ?? null;
    if (summary.state === "refused") this.tell(`Refused: ${summary.stop_reason}`);
  }

  finish() {
    if (!this.run) return;
    this.isLive = false;
    this.stopped ??= (performance.now() - this.started) / 1000;
    this.player.grown(this.run.last);
    this.draw(Math.floor(this.player.at));
    this.changed();
  }

  changed() {
    this.onChange(this);
  }

  // What the other pane's scale must not be smaller than.
  get extent() {
    if (!this.run) return { tokens: 0, length: 0, unit: null, range: [Infinity, -Infinity] };
    const tokens = Math.max(this.limits.tokens ?? 0, spent(this.run.steps.at(-1)?.cost ?? none()), 1);
    return { tokens, length: this.run.maxTokens, ...this.run.worths };
  }

  get limits() {
    return this.run?.head ? this.run.budget : this.asked?.budget ?? {};
  }

  rescale(scale) {
    if (JSON.stringify(scale) === JSON.stringify(this.scale)) return;
    this.scale = scale;
    if (this.run) this.draw(Math.floor(this.player.at));
  }

  draw(at) {
    if (!this.run) return;
    const { run } = this;
    const step = run.steps[at];
    this.heading(at);
    this.priced(step);
    this.tree.scale = this.scale.length || null;
    this.tree.range = this.scale.range ?? run.worths.range;
    const { drawn, all } = step ? this.tree.draw(run, at, this.isLive) : { drawn: 0, all: 0 };
    this.explain(step, drawn, all);
    this.answered(at);
    if (this.shownNode && this.tree.parts.has(this.shownNode.id)) this.describe(this.shownNode);
  }

  heading(at) {
    const { run } = this;
    put(this.title, run.head ? run.label : this.asked.label);
    set(this.title, { title: this.title.textContent });
    this.badge.hidden = !this.guarantee;
    put(this.badge, this.guarantee ?? "");
    put(this.question, run.question || this.asked.question);
    const isOver = run.end && at >= run.last;
    const reason = isOver ? STOPS[run.end.stop_reason] ?? run.end.stop_reason : this.isLive ? "running" : run.end ? `turn ${run.steps[at]?.turn ?? 0}` : "unfinished";
    put(this.status, reason);
    this.status.className = `status ${isOver ? (run.end.stop_reason === "failed" ? "bad" : "over") : this.isLive ? "on" : ""}`;
    this.save.disabled = !this.lines.length;
  }

  explain(step, drawn, all) {
    const { run } = this;
    const parts = [
      step && step.kind !== "end" && step.kind !== "head" ? `Turn ${step.turn}, ${step.kind}: ${step.note}.` : "",
      all > 1 ? `Width: ${legend(run, this.tree.range)}. Faded: left behind.` : "",
      drawn < all ? `${whole(drawn)} of ${whole(all)} nodes drawn, whole branches, those returned first.` : "",
      run.roots.length > 1 ? `${run.roots.length} prompts: the strategy's own ones stand apart.` : "",
      run.unmatched ? `${plural(run.unmatched, "verdict")} could not be matched to branches.` : "",
    ];
    put(this.key, parts.filter(Boolean).join(" ") || (this.isLive ? "Waiting for the first turn." : "Nothing has grown yet."));
  }

  answered(at) {
    const { run } = this;
    const isOver = run.end && at >= run.last;
    const first = isOver ? run.end.candidates[0] : null;
    const ended = run.steps[at]?.ended ?? 0;
    this.answer.className = `answer ${isOver ? "is-over" : ""}`;
    if (isOver) {
      const read = first?.answer ?? null;
      const error = run.end.diagnostics?.error;
      const sure = run.end.confidence === null || run.end.confidence === undefined ? "" : `${share(run.end.confidence)} by its own estimate`;
      fill(
        this.answer, el("span", { class: "label" }, "Answer"), el("output", {}, read === null ? (first ? "none found in the text" : error ?? "none") : clipped(read, 160)),
        el("span", { class: "sure" }, sure),
      );
    } else {
      const text = ended ? `${plural(ended, "answer")} ended so far` : this.isLive ? "thinking" : "none has ended yet";
      fill(this.answer, el("span", { class: "label" }, "Answer"), el("output", { class: "waits" }, text));
    }
    const said = first?.text ?? (this.isLive ? this.said : "");
    this.more.hidden = !said;
    put(find("summary", this.more), first ? "Whole answer" : "Best answer so far");
    put(find("pre", this.more), said);
    this.listed(isOver);
  }

  listed(isOver) {
    const { run } = this;
    if (!isOver) {
      fill(this.votes);
      fill(find("dl", this.facts));
      this.facts.hidden = true;
      this.listedFor = null;
      return;
    }
    if (this.listedFor === run.end) return;
    this.listedFor = run.end;
    const found = groups(run.end);
    const most = Math.max(...found.map((group) => group.members.length), 1);
    const some = found.slice(0, 40);
    fill(
      this.votes, el("h3", {}, `${plural(run.end.candidates.length, "candidate")}, ${plural(found.length, "answer")}`),
      el("ol", {}, ...some.map((group) => voteRow(group, most))), found.length > some.length ? el("p", {}, `${found.length - some.length} more are not listed.`) : null,
    );
    this.facts.hidden = false;
    const rows = [...Object.entries(run.end.diagnostics ?? {}), ["settings", run.head?.recipe?.strategy ?? {}], ["seed", /"seed":(\d+)/.exec(this.lines.findLast((line) => line.includes('"recipe"')) ?? "")?.[1] ?? ""], ["model", run.head?.model]];
    fill(find("dl", this.facts), ...rows.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, short(value)))));
  }

  describe(node) {
    this.shownNode = node;
    if (!node || !this.run) {
      fill(this.detail, el("p", { class: "hint" }, "Point at a node, or focus the tree and use the arrow keys, to read its text and numbers."));
      return;
    }
    const at = Math.floor(this.player.at);
    const own = piece(node);
    const before = node.parent?.text ?? "";
    const rows = facts(this.run, node, at).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", { class: "num" }, value)));
    const text = node.parent
      ? el("p", { class: "text" }, el("span", { class: "before" }, before.length > 240 ? `…${before.slice(-240)}` : before), own === null ? "(text not in the trace)" : own)
      : el("p", { class: "text" }, el("span", { class: "before" }, node === this.run.ownRoot ? this.run.question : "A prompt of the strategy's own; its text is not in the trace."));
    fill(this.detail, el("dl", {}, ...rows), text);
  }

  download() {
    const text = this.lines.map((line) => `${line}\n`).join("");
    const url = URL.createObjectURL(new Blob([text], { type: "application/jsonl" }));
    el("a", { href: url, download: `${this.run.label.replace(/[^\w.-]+/g, "-") || "run"}.jsonl` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  }
}

function voteRow(group, most) {
  const num = group.members.length;
  const bar = el("i", { class: "votebar" });
  bar.style.width = `${(100 * num) / most}%`;
  const best = Math.max(...group.members.map((member) => member.verdicts?.at(-1)?.value ?? -Infinity));
  const weight = group.members.some((member) => member.weight !== null) ? `${share(group.weight)} weight` : best > -Infinity ? `verdict ${decimals(best)}` : "";
  const members = group.members.slice(0, 12).map((member) => {
    const verdict = member.verdicts?.at(-1);
    const notes = [plural((member.tokens ?? []).length, "token"), member.finish ?? "cut", verdict && verdict.value !== null ? `verdict ${decimals(verdict.value)}` : ""];
    return el("li", {}, el("span", { class: "num notes" }, notes.filter(Boolean).join(" · ")), el("pre", {}, member.text));
  });
  return el(
    "li", { class: group.isSelected ? "vote chosen" : "vote" },
    el(
      "details", {},
      el(
        "summary", {}, el("span", { class: "said" }, group.answer === null ? "no answer found" : clipped(group.answer, 80)),
        el("span", { class: "num count" }, [plural(num, "vote"), weight].filter(Boolean).join(", ")), el("span", { class: "track", "aria-hidden": "true" }, bar),
      ),
      el("ul", {}, ...members),
    ),
  );
}

function short(value) {
  return clipped(typeof value === "string" ? value : JSON.stringify(value), 400);
}
