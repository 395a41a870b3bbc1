// The form: a question, one or two strategies with their fields, a budget.

import { el, fill, find, put, set } from "./dom.js";

const FALLBACK = [{ name: "greedy", guarantee: null, summary: "", fields: [] }];

// One strategy and those of its fields that a text can set. `spec()` is NAME or NAME:field=value,... with the fields that were changed.
export class StrategyForm {
  constructor(root, title, preferred) {
    this.preferred = preferred;
    this.id = `strategy-${title.toLowerCase().replace(/\W+/g, "-")}`;
    this.select = el("select", { id: this.id, name: "strategy", change: () => this.choose() });
    this.badge = el("span", { class: "badge", hidden: true });
    this.summary = el("p", { class: "hint" });
    this.fields = el("div", { class: "fields" });
    this.settings = el("details", { class: "settings" }, el("summary", {}, "Settings"), this.fields);
    fill(root, el("div", { class: "row" }, el("label", { for: this.id }, title), this.badge), this.select, this.summary, this.settings);
    this.offer(FALLBACK);
  }

  offer(strategies) {
    const before = this.select.value;
    this.strategies = strategies.length ? strategies : FALLBACK;
    fill(this.select, ...this.strategies.map(({ name }) => el("option", { value: name }, name)));
    const wanted = [strategies === FALLBACK ? "" : this.preferred, before].find((name) => this.strategies.some((one) => one.name === name));
    if (wanted) this.select.value = wanted;
    this.choose();
  }

  get chosen() {
    return this.strategies.find(({ name }) => name === this.select.value) ?? this.strategies[0];
  }

  choose() {
    const { guarantee, summary, fields } = this.chosen;
    this.badge.hidden = !guarantee;
    put(this.badge, guarantee ?? "");
    set(this.badge, { title: guarantee ? `Guarantee: ${guarantee}` : null });
    put(this.summary, summary);
    this.inputs = fields.filter(isSettable).map((field) => {
      const input = inputOf(field, `${this.id}-${field.name}`);
      return { field, input, usual: valueOf(input) };
    });
    this.settings.hidden = !this.inputs.length;
    fill(this.fields, ...this.inputs.map(({ field, input }) => el("div", { class: "field" }, el("label", { for: input.id, title: field.name }, field.name), input)));
  }

  spec() {
    const changed = this.inputs.filter(({ input, usual }) => valueOf(input) !== usual);
    const fields = changed.map(({ field, input }) => `${field.name}=${valueOf(input) || "none"}`).join(",");
    return fields ? `${this.chosen.name}:${fields}` : this.chosen.name;
  }
}

// A spec carries one line without commas: no lists, no templates.
function isSettable({ value }) {
  return !Array.isArray(value) && !(typeof value === "string" && /[\n,]/.test(value));
}

function inputOf({ value, choices, name }, id) {
  if (choices?.length) {
    const all = value === null || choices.includes(shown(value)) ? [...(value === null ? [""] : []), ...choices] : [shown(value), ...choices];
    return el("select", { id, name }, ...all.map((choice) => el("option", { value: choice, selected: choice === shown(value) }, choice || "none")));
  }
  if (typeof value === "boolean") return el("input", { id, name, type: "checkbox", checked: value });
  const isNumber = typeof value === "number";
  return el("input", { id, name, type: isNumber ? "number" : "text", step: isNumber ? "any" : null, value: shown(value), placeholder: value === null ? "none" : null });
}

function valueOf(input) {
  return input.type === "checkbox" ? String(input.checked) : input.value.trim();
}

function shown(value) {
  if (value === null || value === undefined) return "";
  return String(value);
}

// What is asked, from the form's own inputs. Throws nothing: the browser has checked the inputs.
export function readForm(form) {
  const data = new FormData(form);
  const tokens = Number(data.get("tokens")) || null;
  const seconds = Number(data.get("seconds")) || null;
  return {
    model: String(data.get("model") ?? ""), question: String(data.get("question")).trim(), reader: String(data.get("answer")),
    maxTokens: Number(data.get("max_tokens")) || null, seed: data.get("seed") === "" ? null : Number(data.get("seed")), budget: { tokens, seconds },
  };
}

export function bodyOf({ model, question, reader, maxTokens, seed, budget }, spec) {
  const limits = [budget.tokens ? `${budget.tokens} tokens` : "", budget.seconds ? `${budget.seconds} s` : ""].filter(Boolean).join(", ");
  const body = { model: model || "default", messages: [{ role: "user", content: question }], ponder: { strategy: spec, answer: reader, stream: "live" } };
  if (limits) body.ponder.budget = limits;
  if (maxTokens) body.max_tokens = maxTokens;
  if (seed !== null) body.seed = seed;
  return body;
}

// Marks the input that a refused field belongs to, and says why beside it.
export function complain(form, param, text) {
  const names = { model: "model", messages: "question", max_tokens: "max_tokens", seed: "seed", budget: "tokens", strategy: "strategy", answer: "answer" };
  const name = Object.keys(names).find((key) => String(param ?? "").split(/[.[]/).includes(key));
  const input = name && find(`[name="${names[name]}"]`, form);
  if (!input) return false;
  set(input, { "aria-invalid": "true", "aria-describedby": "form-problem" });
  const problem = find("#form-problem", form);
  problem.hidden = false;
  put(problem, text);
  input.focus();
  return true;
}

export function content(form) {
  for (const input of form.querySelectorAll("[aria-invalid]")) set(input, { "aria-invalid": null, "aria-describedby": null });
  find("#form-problem", form).hidden = true;
}
