// The page: views, the form, live runs, stored traces.

import { ask, get, Problem, runLines, savedKey, saveKey, strategiesOf, text } from "./api.js";
import { clipped, el, fill, find, put, set, whole } from "./dom.js";
import { bodyOf, complain, content, readForm, StrategyForm } from "./form.js";
import { showLedger } from "./ledger.js";
import { Pane, STOPS } from "./pane.js";

const EXAMPLES = [["particle_filter", "A particle filter resamples"], ["mcts", "A tree search grows"]];
const VIEWS = ["ask", "runs", "ledger"];
const THEMES = ["auto", "light", "dark"];

const stage = find("#stage");
const form = find("#ask");
const first = new StrategyForm(find("#first"), "Strategy", "particle_filter");
const second = new StrategyForm(find("#second"), "Second strategy", "self_consistency");
const panes = ["First run", "Second run"].map((name) => new Pane(name, { onChange: align, onClose: closed }));
const state = { isUp: false, guarantees: new Map(), stops: new Set(), models: [] };

stage.append(panes[0].root);

// ---- panes

function hint(pane) {
  pane.empty(
    el(
      "div", { class: "welcome" }, el("h2", {}, pane === panes[0] ? "Watch a model think" : "A second run stands here"),
      el("p", {}, state.isUp
        ? "Ask something and see particles or a search tree grow, with every verdict and what it costs."
        : "Open a stored trace and see how particles or a search tree grew, with every verdict and what it cost."),
      el(
        "div", { class: "acts" }, el("button", { type: "button", class: "main", click: () => example(EXAMPLES[pane === panes[0] ? 0 : 1][0], pane) }, "Show an example"),
        el("button", { type: "button", click: () => find("#files").click() }, "Open a trace"),
      ),
    ),
  );
}

function withSecond(isShown) {
  find("#compare").checked = isShown;
  find("#second").hidden = !isShown;
  if (isShown === panes[1].root.isConnected) return;
  if (isShown) {
    stage.append(panes[1].root);
    if (!panes[1].run) hint(panes[1]);
  } else panes[1].root.remove();
  stage.classList.toggle("two", isShown);
  align();
}

function closed(pane) {
  for (const stop of state.stops) if (stop.pane === pane) stop.abort();
  hint(pane);
  if (pane === panes[1]) withSecond(false);
  else align();
}

// Both panes have the same scale: of tokens spent, of tokens across, and of widths where these mean the same.
function align() {
  const shown = panes.filter((pane) => pane.run && pane.root.isConnected);
  const extents = shown.map((pane) => pane.extent);
  const scale = shown.length < 2 ? {} : { tokens: Math.max(...extents.map(({ tokens }) => tokens)), length: Math.max(...extents.map(({ length }) => length)) };
  if (shown.length > 1 && extents.every(({ unit }) => unit === extents[0].unit)) {
    scale.range = [Math.min(...extents.map(({ range }) => range[0])), Math.max(...extents.map(({ range }) => range[1]))];
  }
  for (const pane of shown) pane.rescale(scale);
}

function named(pane) {
  pane.guarantee = state.guarantees.get(pane.run?.label.split(":")[0]) ?? null;
  pane.heading(Math.floor(pane.player.at));
}

// ---- stored traces

function open(pane, trace, name) {
  if (pane === panes[1]) withSecond(true);
  if (pane.load(trace)) {
    named(pane);
    align();
    return;
  }
  pane.run = null;
  pane.fail("This is no trace.", `${name} holds no line of a run. A trace is what ponder ask --trace FILE writes: one JSON object a line.`, retry("Open another", () => find("#files").click()));
}

async function fetched(pane, path, name) {
  if (pane === panes[1]) withSecond(true);
  try {
    open(pane, await text(path), name);
  } catch (problem) {
    pane.run = null;
    failed(pane, problem, () => fetched(pane, path, name));
  }
}

function example(name, pane) {
  return fetched(pane, `examples/${name}.jsonl`, name);
}

async function dropped(files, pane) {
  const chosen = [...files].slice(0, 2);
  const targets = chosen.length > 1 ? panes : [pane];
  for (const [i, file] of chosen.entries()) open(targets[i], await file.text(), file.name);
  if (chosen.length) toStage(targets[0]);
}

function retry(label, click) {
  return el("button", { type: "button", click }, label);
}

// ---- live runs

// One live run in a pane: `work(stop)` keeps it going.
async function live(pane, { label, question, budget }, work, again) {
  const stop = Object.assign(new AbortController(), { pane });
  state.stops.add(stop);
  busy();
  pane.begin({ isLive: true, label, question, budget });
  pane.guarantee = state.guarantees.get(label.split(":")[0]) ?? null;
  const clock = setInterval(() => pane.tick(), 200);
  try {
    await work(stop.signal);
    pane.finish();
  } catch (problem) {
    ended(pane, problem, again);
  } finally {
    clearInterval(clock);
    stop.abort();
    state.stops.delete(stop);
    busy();
  }
}

function start(pane, spec, asked) {
  const work = async (signal) => {
    let following = null;
    const onRun = (run) => { following = follow(pane, run, signal).catch((problem) => problem); };
    await ask(bodyOf(asked, spec), { signal, onRun, onText: (said) => pane.say(said) });
    const problem = await following; // its last lines may come after the answer
    if (problem instanceof Error && problem.name !== "AbortError") throw problem;
  };
  return live(pane, { label: spec, ...asked }, work, () => start(pane, spec, asked));
}

// A run that the server knows, to its end.
function watch(pane, id, about = {}) {
  if (pane === panes[1]) withSecond(true);
  return live(pane, { label: String(about.strategy ?? id), question: String(about.question ?? ""), budget: {} }, (signal) => follow(pane, id, signal), () => watch(pane, id, about));
}

async function follow(pane, id, signal) {
  const lines = runLines(id, signal);
  for (;;) {
    const { value, done } = await lines.next();
    if (done) {
      pane.clocked(value);
      return;
    }
    pane.live(value);
  }
}

function ended(pane, problem, again) {
  if (problem.name === "AbortError") {
    if (!pane.run) return;
    pane.finish();
    pane.tell("Stopped. What it had done stands below.");
    return;
  }
  if (!pane.run?.length) pane.run = null;
  failed(pane, problem, again);
}

function failed(pane, problem, again) {
  const told = problem instanceof Problem ? problem : new Problem("Something went wrong here.", String(problem.message ?? problem));
  if (told.status === 401) askKey(again);
  if (told.status === 400) complain(form, told.param, told.message);
  const acts = [];
  if (told.status !== 400) acts.push(told.retryAfter ? waits(told.retryAfter, again) : retry("Try again", again));
  pane.fail(told.title, told.message, ...acts);
}

// A button that can be pressed after so many seconds.
function waits(seconds, again) {
  let left = Math.ceil(seconds);
  const button = el("button", { type: "button", disabled: true, click: again }, `Try again in ${left} s`);
  const clock = setInterval(() => {
    left -= 1;
    put(button, left > 0 ? `Try again in ${left} s` : "Try again");
    if (left > 0) return;
    button.disabled = false;
    clearInterval(clock);
  }, 1000);
  return button;
}

function busy() {
  const isBusy = state.stops.size > 0;
  find("#stop").hidden = !isBusy;
  find("#go").disabled = isBusy || !state.isUp;
}

// ---- the server

async function connect() {
  const told = find("#server");
  try {
    const [models, strategies] = await Promise.all([get("v1/models"), get("ponder/strategies")]);
    state.isUp = true;
    state.models = [...new Set((models.data ?? []).map(({ id }) => String(id).split("@")[0]))];
    fill(find("#model"), ...state.models.map((id) => el("option", { value: id }, id)));
    const list = strategiesOf(strategies);
    state.guarantees = new Map(list.map(({ name, guarantee }) => [name, guarantee]));
    first.offer(list);
    second.offer(list);
    put(told, state.models[0] ?? "no model");
    told.className = "server up";
  } catch (problem) {
    state.isUp = false;
    if (problem.status === 401) askKey(connect);
    put(told, problem.status === 401 ? "API key needed" : "no server, replay only");
    told.className = "server down";
    fill(find("#model"), el("option", { value: "" }, "–"));
  }
  busy();
  for (const pane of panes) if (!pane.run && !find(".problem", pane.root)) hint(pane);
  for (const pane of panes) if (pane.run) named(pane);
}

async function listRuns() {
  const root = find("#runs");
  try {
    const told = await get("ponder/runs");
    const items = told.data;
    fill(root, ...items.slice(0, 100).map(runItem));
    if (!items.length) fill(root, el("li", { class: "hint" }, "None yet. Every question asked here is kept for replay."));
  } catch (problem) {
    fill(root, el("li", { class: "hint" }, problem.status === 401 ? "An API key is needed." : "No server here."));
  }
}

function runItem(run) {
  const id = String(run.id);
  const spent = run.usage?.tokens;
  const notes = [STOPS[run.stop_reason] ?? run.stop_reason ?? run.state ?? "", spent === undefined ? "" : `${whole(spent)} tokens`, run.answer ? `answer ${clipped(run.answer, 16)}` : ""];
  return item(clipped(run.strategy ?? id, 44), clipped(run.question ?? "", 70), notes.filter(Boolean).join(" · "), (pane) => watch(pane, id, run));
}

function item(title, about, notes, show) {
  return el(
    "li", {},
    el("button", { type: "button", class: "run", click: () => opened(show, panes[0]) }, el("strong", {}, title), about ? el("span", {}, about) : null, notes ? el("span", { class: "num notes" }, notes) : null),
    el("button", { type: "button", class: "quiet", "aria-label": `${title}, beside`, click: () => opened(show, panes[1]) }, "Beside"),
  );
}

function opened(show, pane) {
  show(pane);
  toStage(pane);
}

// On a narrow screen the run stands below the controls.
function toStage(pane) {
  if (matchMedia("(max-width: 899px)").matches) pane.root.scrollIntoView({ behavior: "smooth" });
}

async function ledger() {
  const root = find("#ledger");
  try {
    showLedger(root, await get("ponder/ledger"));
  } catch (problem) {
    fill(root, el("div", { class: "problem" }, el("h2", {}, problem.title ?? "Something went wrong here."), el("p", {}, problem.message), retry("Try again", ledger)));
    if (problem.status === 401) askKey(ledger);
  }
}

function askKey(then) {
  const dialog = find("#key");
  find("#key-button").hidden = false;
  state.afterKey = then ?? state.afterKey;
  if (dialog.open) return;
  find("#key-input").value = savedKey();
  dialog.showModal();
}

// ---- views and theme

function view() {
  const name = VIEWS.includes(location.hash.slice(1)) ? location.hash.slice(1) : "ask";
  for (const link of document.querySelectorAll("[data-view]")) set(link, { "aria-current": link.dataset.view === name ? "page" : null });
  find("#view-ask").hidden = name !== "ask";
  find("#view-runs").hidden = name !== "runs";
  find("#view-ledger").hidden = name !== "ledger";
  find("#side").hidden = name === "ledger";
  stage.hidden = name === "ledger";
  if (name === "runs") listRuns();
  if (name === "ledger") ledger();
}

function theme(name) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  put(find("#theme"), `Theme: ${name}`);
  try {
    localStorage.setItem("ponder-theme", name === "auto" ? "" : name);
  } catch {
    // no storage: for this page only
  }
}

function keyed(event) {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && form.contains(event.target)) form.requestSubmit();
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || find("#key").open) return;
  if (event.target.closest("input, textarea, select, button, summary, a, label, svg")) {
    if (event.key !== " " || !event.target.closest("svg")) return;
  }
  const act = { " ": (player) => player.toggle(), ArrowLeft: (player) => player.step(-1), ArrowRight: (player) => player.step(1) }[event.key];
  const shown = panes.filter((pane) => pane.run && pane.root.isConnected && !stage.hidden);
  if (!act || !shown.length) return;
  event.preventDefault();
  for (const pane of shown) act(pane.player);
}

function listen() {
  set(form, {
    submit: (event) => {
      event.preventDefault();
      if (state.stops.size) return;
      content(form);
      const asked = readForm(form);
      start(panes[0], first.spec(), asked);
      if (find("#compare").checked) start(panes[1], second.spec(), asked);
      toStage(panes[0]);
    },
  });
  set(find("#compare"), { change: (event) => withSecond(event.target.checked) });
  set(find("#stop"), { click: () => state.stops.forEach((stop) => stop.abort()) });
  set(find("#files"), { change: (event) => dropped(event.target.files, panes[0]).then(() => { event.target.value = ""; }) });
  set(find("#refresh"), { click: listRuns });
  set(find("#ledger-refresh"), { click: ledger });
  set(find("#server"), { click: connect });
  set(find("#theme"), { click: () => theme(THEMES[(THEMES.indexOf(document.documentElement.dataset.theme ?? "auto") + 1) % 3]) });
  set(find("#key-button"), { click: () => askKey(connect) });
  set(find("#key-cancel"), { click: () => find("#key").close() });
  set(find("#key-form"), {
    submit: (event) => {
      event.preventDefault();
      saveKey(find("#key-input").value.trim());
      find("#key").close();
      const then = state.afterKey;
      state.afterKey = null;
      if (!state.isUp && then !== connect) connect();
      then?.();
    },
  });
  addEventListener("hashchange", view);
  addEventListener("keydown", keyed);
  set(document, { dragover: dragged, dragleave: dragged, drop: dragged });
}

function dragged(event) {
  if (!event.dataTransfer?.types.includes("Files")) return;
  event.preventDefault();
  document.body.classList.toggle("dragging", event.type === "dragover");
  if (event.type === "drop") dropped(event.dataTransfer.files, panes[1].root.contains(event.target) ? panes[1] : panes[0]);
}

async function begin() {
  theme(document.documentElement.dataset.theme ?? "auto");
  listen();
  fill(find("#examples"), ...EXAMPLES.map(([name, about]) => item(name, about, "", (pane) => example(name, pane))));
  view();
  panes.forEach(hint);
  const wanted = new URLSearchParams(location.search);
  for (const [i, name] of ["trace", "beside"].entries()) if (wanted.get(name)) await fetched(panes[i], wanted.get(name), wanted.get(name));
  await connect();
  if (wanted.get("run")) watch(panes[0], wanted.get("run"));
}

begin();
