// A run from its trace. Lines are added one after another; everything is stamped with the line at which it came to be known,
// so that the run as of any line is a matter of comparing numbers, and a scrubber computes nothing anew.

// {value, raw} of a line, or null. The raw text is what is saved again: a seed has more digits than a number here can hold.
export function read(raw) {
  try {
    const value = JSON.parse(raw);
    return value !== null && typeof value === "object" && !Array.isArray(value) ? { value, raw } : null;
  } catch {
    return null;
  }
}

export function parse(text) {
  const lines = [];
  const bad = [];
  text.split("\n").forEach((raw, index) => {
    if (!raw.trim()) return;
    const line = read(raw);
    if (line) lines.push(line);
    else bad.push(index + 1);
  });
  return { lines, bad };
}

// Lines by job, in the order in which the jobs began: a comparison writes all of its runs into one file.
export function jobs(lines) {
  const found = new Map();
  for (const line of lines) {
    const job = String(line.value.job ?? "run");
    if (!found.has(job)) found.set(job, []);
    found.get(job).push(line);
  }
  return found;
}

const NO_COST = { prompt: 0, generated: 0, verifier: 0, reused: 0, calls: 0, flops: 0 };
const FINAL = new Set(["stop", "length"]);
const ENDS = { until: "the end of a step", limit: "its limit", stop: "the answer's end", length: "the greatest length", budget: "the end of the budget" };

export class Run {
  constructor() {
    this.head = null;
    this.end = null;
    this.nodes = []; // in the order of their birth, parents before children
    this.keys = new Map();
    this.roots = [];
    this.steps = []; // per line: what it was, and the cost of all lines so far
    this.grown = []; // what Extends gave since the last verdicts, in order
    this.ever = [];
    this.held = []; // Judge lines of one turn that wait for their sisters
    this.unmatched = 0; // verdicts whose branch is not known
    this.kinds = new Set(); // of verdicts
    this.probabilities = [Infinity, -Infinity]; // range of the nodes' mean token probabilities
    this.values = [Infinity, -Infinity]; // range of the verdicts, those of kind log_p as probabilities
    this.maxTokens = 1;
    this.turn = 0;
    this.growTurn = 0; // the last turn that made nodes
    this.verifier = null;
  }

  get length() {
    return this.steps.length;
  }

  get last() {
    return this.steps.length - 1;
  }

  get question() {
    const messages = this.head?.prompt?.messages ?? [];
    return messages.length ? String(messages[messages.length - 1][1]) : "";
  }

  get label() {
    return String(this.head?.recipe?.label ?? "run");
  }

  get budget() {
    return this.head?.recipe?.budget ?? {};
  }

  add(line) {
    const before = this.steps.at(-1);
    const step = { kind: "head", turn: 0, note: "", cost: before?.cost ?? NO_COST, grownBy: before?.grownBy ?? 0, ended: before?.ended ?? 0 };
    this.steps.push(step);
    if (line.recipe) this.head = line;
    else if (line.ask && line.answer) this.answered(line, step);
    else if (line.candidates) this.ended(line, step);
    else step.kind = "other";
  }

  answered({ ask, answer, turn = 0 }, step) {
    Object.assign(step, { kind: ask.kind, turn, cost: plus(step.cost, answer.cost ?? {}) });
    if (turn !== this.turn) step.grownBy = this.growTurn; // whatever grew in the turns before this one has grown
    this.turn = turn;
    if (this.held.length && (ask.kind !== "judge" || this.held[0].turn !== turn)) this.giveUp();
    if (ask.kind === "extend") this.extend(ask, answer, turn, step);
    else if (ask.kind === "expand") this.expand(ask, answer, turn, step);
    else if (ask.kind === "judge") this.judge(ask, answer, turn, step);
    else this.seen(ask, answer, step);
  }

  extend(ask, answer, turn, step) {
    const parent = this.prefix(ask.prompt, ask.tokens ?? [], turn);
    const { node, isNew } = this.child(parent, ask.prompt, answer.prefix, turn);
    const grew = node !== parent;
    const record = { node, isNew, grew, cut: answer.prefix.finish === "budget" };
    this.grown.push(record);
    this.ever.push(record);
    this.growTurn = turn;
    if (FINAL.has(answer.prefix.finish)) step.ended += 1;
    step.node = node;
    step.note = grew ? `${(answer.prefix.tokens ?? []).length - parent.tokens} tokens more, to ${ENDS[answer.finish] ?? answer.finish}` : `nothing more, ${ENDS[answer.finish] ?? answer.finish}`;
  }

  expand(ask, answer, turn, step) {
    const parent = this.prefix(ask.prompt, ask.tokens ?? [], turn);
    for (const prefix of answer.children ?? []) this.child(parent, ask.prompt, prefix, turn);
    this.growTurn = turn;
    step.node = parent;
    step.note = `${(answer.children ?? []).length} next tokens`;
  }

  // Score and Read: numbers about a prefix that is there.
  seen(ask, answer, step) {
    const node = this.prefix(ask.prompt, ask.tokens ?? [], step.turn);
    const values = ask.kind === "score" ? answer.log_p ?? [] : answer.rows ?? [];
    node.seen.push({ at: this.last, kind: ask.kind, options: ask.options ?? ask.places ?? [], values });
    step.node = node;
    step.note = ask.kind === "score" ? `${values.length} continuations scored` : `${values.length} states read`;
  }

  root(prompt, turn) {
    let root = this.keys.get(key(prompt, []));
    if (!root) {
      root = this.born(prompt, [], { text: "", log_p: 0 }, null, turn);
      this.roots.push(root);
    }
    return root;
  }

  // The node of a prefix. One that was never an answer hangs on its longest known beginning; its own text is not in the trace.
  prefix(prompt, tokens, turn) {
    const known = this.keys.get(key(prompt, tokens));
    if (known) return known;
    let parent = this.root(prompt, turn);
    for (let length = tokens.length; length > 0; length -= 1) {
      const found = this.keys.get(key(prompt, tokens.slice(0, length)));
      if (found) {
        parent = found;
        break;
      }
    }
    return tokens.length ? this.born(prompt, tokens, {}, parent, turn) : parent;
  }

  child(parent, prompt, prefix, turn) {
    const tokens = prefix.tokens ?? [];
    const known = this.keys.get(key(prompt, tokens));
    const node = known ?? this.born(prompt, tokens, prefix, parent, turn);
    if (known) {
      known.text ??= prefix.text ?? null;
      if (known !== parent) known.count += 1;
    }
    if (prefix.finish && !node.finish) Object.assign(node, { finish: prefix.finish, finishAt: this.last });
    return { node, isNew: !known };
  }

  born(prompt, tokens, prefix, parent, turn) {
    const node = {
      id: this.nodes.length, prompt, parent, children: [], born: this.last, turn, tokens: tokens.length, depth: parent ? parent.depth + 1 : 0,
      text: prefix.text ?? null, logP: prefix.log_p ?? null, finish: null, finishAt: Infinity, count: 1, verdicts: [], answer: undefined,
      answerAt: Infinity, seen: [], candidate: -1,
    };
    this.nodes.push(node);
    this.keys.set(key(prompt, tokens), node);
    parent?.children.push(node);
    this.maxTokens = Math.max(this.maxTokens, tokens.length);
    const probability = meanProbability(node);
    if (probability !== null) widen(this.probabilities, probability);
    return node;
  }

  // A Judge's line names its candidates' answers, not their tokens. They are what grew since the last verdicts, in order:
  // all of it, or without what was drawn twice or cut off. Where no such reading has the right number, no branch gets a verdict.
  judge(ask, answer, turn, step) {
    this.verifier = String(ask.verifier ?? "");
    const verdicts = answer.verdicts ?? [];
    step.note = `${verdicts.length} verdicts of ${this.verifier}`;
    for (const verdict of verdicts.filter(({ value }) => value !== null)) this.weighed(verdict);
    this.held.push({ turn, at: this.last, answers: ask.candidates ?? [], verdicts });
    const wanted = this.held.reduce((sum, held) => sum + held.verdicts.length, 0);
    const nodes = readings(this.grown, this.ever).find((found) => found.length === wanted);
    if (!nodes) return;
    let place = 0;
    for (const held of this.held) {
      held.verdicts.forEach((verdict, i) => this.told(nodes[place + i], verdict, held.answers[i], held.at));
      place += held.verdicts.length;
    }
    this.held = [];
    this.grown = [];
  }

  weighed(verdict) {
    this.kinds.add(verdict.kind);
    widen(this.values, strength(verdict));
  }

  // What the drawing's widths stand for in this run, and from where to where it goes.
  get worths() {
    if (!this.kinds.size) return { unit: "mean token probability", range: this.probabilities };
    return { unit: this.kinds.has("log_p") ? "verdict, exp(log p)" : "verdict", range: this.values };
  }

  told(node, verdict, answer, at) {
    node.verdicts.push({ at, ...verdict });
    if (answer !== undefined && node.answer === undefined) Object.assign(node, { answer, answerAt: at });
  }

  giveUp() {
    this.unmatched += this.held.reduce((sum, held) => sum + held.verdicts.length, 0);
    this.held = [];
    this.grown = [];
  }

  ended(line, step) {
    if (this.held.length) this.giveUp();
    Object.assign(step, { kind: "end", turn: this.steps.at(-2)?.turn ?? 0, note: `stopped: ${line.stop_reason}` });
    this.end = line;
    step.cost = ofEnd(line.cost ?? {});
    line.candidates.forEach((candidate, rank) => {
      const node = this.nodeOf(candidate);
      if (!node) return;
      if (node.candidate < 0) node.candidate = rank;
      Object.assign(node, { answer: candidate.answer, answerAt: Math.min(node.answerAt, this.last) });
      this.confirm(node, candidate.verdicts ?? []);
    });
  }

  // The last line holds the verdicts of what was returned. Where they contradict what was matched, nothing that was matched is believed.
  confirm(node, verdicts) {
    if (!verdicts.length) return;
    const last = verdicts.at(-1);
    const matched = node.verdicts.some((verdict) => verdict.value === last.value);
    if (!matched && node.verdicts.length) {
      for (const other of this.nodes) {
        this.unmatched += other.verdicts.length;
        other.verdicts = [];
      }
    }
    if (!matched) {
      node.verdicts.push({ at: this.last, ...last });
      if (last.value !== null) this.weighed(last);
    }
  }

  // A returned candidate's node: under the prompt of the first, or, where the strategy made prompts of its own, under any.
  nodeOf(candidate) {
    const tokens = candidate?.tokens ?? [];
    if (!tokens.length) return null;
    for (const root of [...this.roots].sort((a, b) => (b === this.ownRoot) - (a === this.ownRoot))) {
      const found = this.keys.get(key(root.prompt, tokens));
      if (found) return found;
    }
    return null;
  }

  // The prompt that was asked is the one that is asked first.
  get ownRoot() {
    return this.roots[0] ?? null;
  }

  get selected() {
    return this.end?.candidates.length ? this.nodeOf(this.end.candidates[0]) : null;
  }
}

function key(prompt, tokens) {
  return `${prompt}:${tokens.join()}`;
}

function plus(sum, cost) {
  return {
    prompt: sum.prompt + (cost.prompt_tokens ?? 0), generated: sum.generated + (cost.generated_tokens ?? 0),
    verifier: sum.verifier + (cost.verifier_tokens ?? 0), reused: sum.reused + (cost.reused_tokens ?? 0),
    calls: sum.calls + (cost.calls ?? 0), flops: sum.flops + (cost.flops ?? 0),
  };
}

function ofEnd(cost) {
  return { ...plus(NO_COST, cost), wasted: cost.wasted_tokens ?? 0, seconds: cost.seconds };
}

// Ways to read which nodes a Judge meant.
function readings(grown, ever) {
  return [grown, ever].flatMap((records) => {
    const whole = records.filter((r) => !r.cut);
    return [
      whole.filter((r) => r.grew && r.isNew), records.filter((r) => r.grew), whole.filter((r) => r.grew), whole, [...new Map(whole.map((r) => [r.node, r])).values()], records,
    ].map((found) => found.map((r) => r.node));
  });
}

// The piece of text that a node adds to its parent's.
export function piece(node) {
  if (node.text === null) return null;
  let above = node.parent;
  while (above && above.text === null) above = above.parent;
  const before = above?.text ?? "";
  return node.text.startsWith(before) ? node.text.slice(before.length) : node.text;
}

export function verdictAt(node, at) {
  return node.verdicts.findLast((verdict) => verdict.at <= at && verdict.value !== null) ?? null;
}

// Mean probability of the tokens that a node adds, under the model itself.
export function meanProbability(node) {
  const num = node.tokens - (node.parent?.tokens ?? 0);
  const before = node.parent?.logP ?? 0;
  return node.logP === null || num < 1 ? null : Math.min(1, Math.exp((node.logP - before) / num));
}

// A verdict as the number that is drawn.
function strength({ value, kind }) {
  return kind === "log_p" ? Math.exp(value) : value;
}

function widen(range, value) {
  range[0] = Math.min(range[0], value);
  range[1] = Math.max(range[1], value);
}

// Where between 0 and 1 the node's verdict lies in `range`; in a run without verdicts, how likely its tokens were.
export function worth(run, node, at, [low, high]) {
  const verdict = verdictAt(node, at);
  const value = verdict ? strength(verdict) : run.kinds.size ? low : meanProbability(node) ?? low;
  return high > low ? Math.min(1, Math.max(0, (value - low) / (high - low))) : 0.5;
}

// Answers that are equal as read, most votes first; the selected one's group leads.
export function groups(end) {
  const weights = end.diagnostics?.weights ?? [];
  const found = new Map();
  end.candidates.forEach((candidate, i) => {
    const name = candidate.answer === null ? null : String(candidate.answer).toLowerCase();
    if (!found.has(name)) found.set(name, { answer: candidate.answer, members: [], weight: 0, isSelected: i === 0 });
    const group = found.get(name);
    group.members.push({ ...candidate, weight: weights[i] ?? null });
    group.weight += weights[i] ?? 0;
  });
  const size = (group) => (weights.length ? group.weight : group.members.length);
  return [...found.values()].sort((a, b) => b.isSelected - a.isSelected || (a.answer === null) - (b.answer === null) || size(b) - size(a));
}
