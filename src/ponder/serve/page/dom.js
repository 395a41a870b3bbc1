// The page's only way to make elements. Text becomes text nodes, never markup: what a model wrote is not trusted.

const SVG = "http://www.w3.org/2000/svg";

export function el(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, attributes, children) {
  set(node, attributes);
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

// A function is a listener; null and false leave the attribute out.
export function set(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value === null || value === undefined || value === false) node.removeAttribute(name);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  return node;
}

// Puts `children` in place of what `node` holds.
export function fill(node, ...children) {
  node.replaceChildren(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export function put(node, text) {
  const value = String(text);
  if (node.textContent !== value) node.textContent = value;
}

export function find(selector, root = document) {
  return root.querySelector(selector);
}

const WHOLE = new Intl.NumberFormat("en");
const SI = [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"]];

export function whole(number) {
  return WHOLE.format(Math.round(number));
}

export function flops(number) {
  const [size, letter] = SI.find(([limit]) => number >= limit) ?? [1, ""];
  return `${(number / size).toPrecision(3)} ${letter}FLOP`;
}

export function share(number) {
  return `${(100 * number).toFixed(0)} %`;
}

export function decimals(number, places = 3) {
  if (number === null || number === undefined || Number.isNaN(number)) return "–";
  return Math.abs(number) >= 1e4 || (number !== 0 && Math.abs(number) < 1e-3) ? Number(number).toExponential(1) : Number(number).toFixed(places);
}

export function clipped(text, most) {
  const flat = String(text).replace(/\s+/g, " ").trim();
  const letters = [...flat];
  return letters.length > most ? `${letters.slice(0, most - 1).join("")}…` : flat;
}

export function plural(number, word) {
  return `${whole(number)} ${word}${number === 1 ? "" : "s"}`;
}
