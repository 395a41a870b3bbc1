// What a run has cost as of a line, against its budget.

import { el, flops, put, set, whole } from "./dom.js";

const PARTS = [["prompt", "prompt"], ["generated", "generated"], ["verifier", "verifier"]];

export function spent(cost) {
  return cost.prompt + cost.generated + cost.verifier;
}

export class CostView {
  constructor() {
    this.total = el("strong", { class: "num" }, "0");
    this.limit = el("span", { class: "num" });
    this.bars = PARTS.map(([name]) => el("i", { class: `part ${name}` }));
    this.mark = el("b", { class: "limit", hidden: true });
    this.bar = el("div", { class: "bar", role: "img" }, ...this.bars, this.mark);
    this.values = new Map();
    const rows = [...PARTS.map(([name, title]) => [name, title]), ["reused", "reused"], ["wasted", "wasted"], ["seconds", "seconds"], ["flops", "compute"]];
    const cells = rows.map(([name, title]) => {
      const value = el("dd", { class: "num" }, "–");
      this.values.set(name, value);
      return el("div", { class: `cell ${name}` }, el("dt", {}, title), value);
    });
    this.root = el(
      "section", { class: "cost", "aria-label": "Cost" },
      el("div", { class: "spent" }, el("span", {}, this.total, " tokens"), this.limit), this.bar, el("dl", {}, ...cells),
    );
  }

  // `scale`: tokens that the whole bar stands for; `seconds`: what the clock says, where there is one.
  draw(cost, budget, { scale, seconds }) {
    const total = spent(cost);
    put(this.total, whole(total));
    const limits = [budget.tokens ? `${whole(budget.tokens)} tokens` : "", budget.seconds ? `${budget.seconds} s` : ""].filter(Boolean);
    put(this.limit, limits.length ? `of ${limits.join(", ")}` : "no limit");
    PARTS.forEach(([name], i) => { this.bars[i].style.width = `${Math.min(100, (100 * cost[name]) / scale)}%`; });
    this.mark.hidden = !budget.tokens || budget.tokens > scale;
    this.mark.style.left = `${(100 * (budget.tokens ?? 0)) / scale}%`;
    set(this.bar, { "aria-label": `${whole(total)} tokens ${limits.length ? `of ${limits.join(", ")}` : "spent"}` });
    for (const [name] of PARTS) put(this.values.get(name), whole(cost[name]));
    put(this.values.get("reused"), whole(cost.reused));
    put(this.values.get("wasted"), cost.wasted === undefined ? "–" : whole(cost.wasted));
    const clock = seconds ?? cost.seconds;
    put(this.values.get("seconds"), clock === undefined || clock === null ? "–" : clock.toFixed(1));
    put(this.values.get("flops"), cost.flops ? flops(cost.flops) : "–");
    this.values.get("seconds").classList.toggle("over", Boolean(budget.seconds && clock > budget.seconds));
  }
}

export function none() {
  return { prompt: 0, generated: 0, verifier: 0, reused: 0, calls: 0, flops: 0 };
}

