// Where in a run one looks: a slider, play and pause, a step back and forth. A live run is followed until somebody moves the slider.

import { el, put, set, whole } from "./dom.js";

const SHOWN_SECONDS = 14; // of a long trace, from its beginning to its end
const LEAST_RATE = 3; // lines a second

export class Player {
  // `onMove(at)` is told the line to show.
  constructor(onMove) {
    this.onMove = onMove;
    this.last = 0;
    this.at = 0;
    this.isPlaying = false;
    this.isFollowing = true;
    this.speed = 1;
    this.play = button("Play", "▶", () => this.toggle());
    this.range = el("input", { type: "range", min: 0, max: 0, value: 0, step: 1, "aria-label": "Line of the trace", input: () => this.grabbed() });
    this.place = el("output", { class: "num place" }, "0 / 0");
    this.rate = el(
      "select", { "aria-label": "Speed", change: () => { this.speed = Number(this.rate.value); } },
      ...[0.5, 1, 2, 4].map((speed) => el("option", { value: speed, selected: speed === 1 }, `${speed}×`)),
    );
    this.root = el(
      "div", { class: "player", role: "group", "aria-label": "Replay" },
      button("One line back", "‹", () => this.step(-1)), this.play, button("One line on", "›", () => this.step(1)), this.range, this.place, this.rate,
    );
  }

  open(last, isFollowing) {
    this.pause();
    this.isFollowing = isFollowing;
    this.grown(last);
    this.go(last);
  }

  // More lines are there; who follows goes with them.
  grown(last) {
    this.last = Math.max(0, last);
    set(this.range, { max: this.last });
    if (this.isFollowing) this.go(this.last);
    else this.show();
  }

  go(at) {
    const next = Math.min(this.last, Math.max(0, at));
    const isMoved = Math.floor(next) !== Math.floor(this.at);
    this.at = next;
    this.show();
    if (isMoved || this.isFollowing) this.onMove(Math.floor(next));
  }

  show() {
    const at = Math.floor(this.at);
    this.range.value = String(at);
    put(this.place, `${whole(at)} / ${whole(this.last)}`);
    set(this.range, { "aria-valuetext": `line ${at} of ${this.last}` });
  }

  grabbed() {
    this.pause();
    const at = Number(this.range.value);
    this.isFollowing = at >= this.last;
    this.go(at);
  }

  step(by) {
    this.pause();
    this.isFollowing = false;
    this.go(Math.floor(this.at) + by);
  }

  toggle() {
    if (this.isPlaying) {
      this.pause();
      return;
    }
    this.isFollowing = false;
    this.isPlaying = true;
    if (this.at >= this.last) this.go(0);
    this.labelled("Pause", "❚❚");
    let before = performance.now();
    const frame = (time) => {
      if (!this.isPlaying) return;
      const rate = Math.max(LEAST_RATE, this.last / SHOWN_SECONDS) * this.speed;
      this.go(this.at + (rate * Math.max(0, time - before)) / 1000);
      before = time;
      if (this.at >= this.last) this.pause();
      else requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
  }

  pause() {
    this.isPlaying = false;
    this.labelled("Play", "▶");
  }

  labelled(label, sign) {
    set(this.play, { "aria-label": label, title: label });
    put(this.play, sign);
  }
}

function button(label, sign, click) {
  return el("button", { type: "button", class: "icon", "aria-label": label, title: label, click }, sign);
}
