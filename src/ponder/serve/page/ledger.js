// The ledger: all costs of the server, as it tells them. Names come from the server; numbers are lined up, nothing is left out.

import { decimals, el, fill, flops, whole } from "./dom.js";

export function showLedger(root, told) {
  const scalars = Object.entries(told).filter(([, value]) => !isTree(value));
  const trees = Object.entries(told).filter(([, value]) => isTree(value));
  const cards = trees.flatMap(([name, value]) => cardsOf(name, value));
  if (scalars.length) cards.unshift(card("server", scalars));
  fill(root, ...(cards.length ? cards : [el("p", { class: "hint" }, "Nothing has been spent yet.")]));
}

function isTree(value) {
  return value !== null && typeof value === "object" && (!Array.isArray(value) || value.some((item) => item !== null && typeof item === "object"));
}

function cardsOf(name, value) {
  if (Array.isArray(value)) return value.length ? [table(name, value.map((item) => (isTree(item) ? item : { value: item })))] : [];
  const entries = Object.entries(value);
  if (entries.length > 1 && entries.every(([, inner]) => isTree(inner) && !Array.isArray(inner))) return [table(name, entries.map(([key, inner]) => ({ name: key, ...inner })))];
  const flat = entries.filter(([, inner]) => !isTree(inner));
  const nested = entries.filter(([, inner]) => isTree(inner)).flatMap(([key, inner]) => cardsOf(`${name} / ${key}`, inner));
  return [...(flat.length ? [card(name, flat)] : []), ...nested];
}

function card(name, entries) {
  const rows = entries.map(([key, value]) => el("div", {}, el("dt", {}, words(key)), el("dd", { class: value === 0 ? "num zero" : "num" }, told(key, value))));
  return el("section", { class: "card" }, el("h3", {}, words(name)), el("dl", {}, ...rows));
}

function table(name, items) {
  const columns = [...new Set(items.flatMap((item) => Object.keys(item)))].filter((key) => items.some((item) => !isTree(item[key])));
  const head = el("tr", {}, ...columns.map((key) => el("th", { scope: "col", class: items.some((item) => typeof item[key] === "number") ? "num" : null }, words(key))));
  const rows = items.slice(0, 200).map((item) => el("tr", {}, ...columns.map((key) => el("td", { class: typeof item[key] === "number" ? "num" : "" }, told(key, item[key] ?? "")))));
  return el("section", { class: "card wide" }, el("h3", {}, words(name)), el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": words(name) }, el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows))));
}

function words(key) {
  return String(key).replaceAll("_", " ");
}

function told(key, value) {
  if (typeof value !== "number") return Array.isArray(value) ? value.join(", ") : String(value);
  if (String(key).includes("flops")) return value ? flops(value) : "0";
  return Number.isInteger(value) ? whole(value) : Math.abs(value) < 1 ? decimals(value) : decimals(value, 1);
}
