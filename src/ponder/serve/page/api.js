// The server, as the page sees it. Paths are relative, so that the page also works behind a prefix.

import { read } from "./trace.js";

const KEY = "ponder-key";

// What went wrong, in words that a person can act on: `title`, `text`, and `param` where the server named a field.
export class Problem extends Error {
  constructor(title, text, { status = 0, param = null, retryAfter = null } = {}) {
    super(text);
    Object.assign(this, { title, status, param, retryAfter });
  }
}

export function savedKey() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return "";
  }
}

export function saveKey(key) {
  try {
    if (key) sessionStorage.setItem(KEY, key);
    else sessionStorage.removeItem(KEY);
  } catch {
    // no storage: the key is asked for again
  }
}

async function request(path, { body, signal } = {}) {
  const headers = { accept: "application/json, text/event-stream" };
  if (savedKey()) headers.authorization = `Bearer ${savedKey()}`;
  if (body) headers["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server cannot be reached.", "It may have stopped, or the connection is down. Stored traces can still be replayed.");
  }
  if (!response.ok) throw await problemOf(response);
  return response;
}

async function problemOf(response) {
  const { status } = response;
  const told = await response.json().then((value) => value.error ?? value, () => ({}));
  const said = typeof told === "string" ? told : told.message ?? told.detail ?? "";
  const retryAfter = Number(response.headers.get("retry-after")) || null;
  const about = { status, param: told.param ?? null, retryAfter };
  if (status === 401 || status === 403) return new Problem("This server wants an API key.", said || "Enter it and ask again.", about);
  if (status === 429) return new Problem("The server is busy.", said || "It takes no more requests right now.", about);
  if (status === 400 || status === 422) return new Problem(about.param ? `The field ${about.param} was refused.` : "The request was refused.", said, about);
  if (status === 404) return new Problem("Not found.", said || "The server does not have it (any more).", about);
  if (status === 503) return new Problem("The server is not taking requests.", said || "It is starting or shutting down.", about);
  return new Problem(`The server failed (${status}).`, said || "Its log says more.", about);
}

export async function get(path) {
  return (await request(path)).json();
}

export async function text(path) {
  return (await request(path)).text();
}

// Server-sent events as {name, data}, as they come.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let name = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      rest += value ?? (done ? "\n\n" : "");
      const lines = rest.split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("event:")) name = line.slice(6).trim();
        else if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        else if (line === "") {
          if (data.length) yield { name, data: data.join("\n") };
          [name, data] = ["", []];
        }
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

// Lines of a run's trace, those to come too. Returns what the server says of it at its end, or null.
export async function* runLines(id, signal) {
  const response = await request(`ponder/runs/${encodeURIComponent(id)}/events`, { signal });
  for await (const { name, data } of events(response)) {
    const line = data === "[DONE]" ? null : read(data);
    if (name === "end") return line?.value ?? null;
    if (line) yield line;
  }
  return null;
}

// Asks. `onRun(id)` is told once, when the run's name is known; `onText(text)` whenever the best answer so far has changed.
export async function ask(body, { signal, onRun, onText }) {
  const response = await request("v1/chat/completions", { body: { ...body, stream: true }, signal });
  let run = null;
  let said = "";
  for await (const { data } of events(response)) {
    const chunk = data === "[DONE]" ? null : read(data)?.value;
    if (!chunk) continue;
    if (chunk.error) throw new Problem("The run failed.", String(chunk.error.message ?? chunk.error), { param: chunk.error.param ?? null });
    const { delta, ponder } = chunk.choices?.[0] ?? {};
    if (!run && (ponder?.run ?? chunk.id)) {
      run = ponder?.run ?? chunk.id; // a completion's id is its first run's
      onRun(run);
    }
    const before = said;
    if (typeof ponder?.text === "string") said = ponder.text;
    if (typeof ponder?.append === "string") said += ponder.append;
    if (ponder?.revision === undefined && delta?.content) said = said.endsWith(delta.content) ? said : said + delta.content;
    if (said !== before) onText(said);
  }
}

// Strategies as a list of {name, guarantee, summary, fields: [{name, value, choices}]}.
export function strategiesOf({ strategies, choices = {} }) {
  return strategies.map(({ name, guarantee = null, summary = "", fields = [] }) => ({
    name, guarantee, summary, fields: fields.map((field) => ({ name: field.name, value: field.default ?? null, choices: field.choices ? choices[field.name] ?? null : null })),
  }));
}
