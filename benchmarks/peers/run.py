"""A run: which engines, works and files, the turns one after the other, and the journal that lets a cut-off run go on."""

import json
import math
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from peers.figures import agreement, rows_of
from peers.orders import OrderBook
from peers.seats import Seats
from peers.works import MODELS, OURS, PEERS, SPANS, UNITS, WORKS, Work, sized
from ponder import catalogue
from ponder.models.fetch import pull

SLOW_S, QUICK_SLOW_S = 10.0, 5.0  # an engine whose turn takes longer is not asked again for that work, but in a long run
QUICK_MINUTES, LONG_MINUTES, OTHER_MINUTES = 2.6, 60.0, 6.0  # for each model: short and long runs; models without a row in works.SPANS
MAX_FAILED = 3  # turns that may fail before an engine is left out of the rest of a model's works


@dataclass(frozen=True)
class Plan:
    models: tuple[str, ...]
    engines: tuple[str, ...]
    works: tuple[str, ...]
    weights: str  # of ours; "" is the best that there is
    minutes: float  # for each model; 0: as many as suit it
    threads: int
    python: str
    is_quick: bool
    is_long: bool
    is_tiny: bool
    words: tuple[str, ...]  # what was asked for on the command line, for the rows

    @classmethod
    def of(cls, args: Namespace) -> "Plan":
        """Raises SystemExit for names that do not exist."""
        models = tuple(filter(None, args.models.split(","))) or (tuple(MODELS)[:1] if args.quick or args.tiny else tuple(MODELS))
        chosen = [w.strip() for w in args.works.split(",") if w.strip()] or [w.name for w in WORKS if w.is_quick or not args.quick]
        if unknown := set(chosen) - {w.name for w in WORKS}:
            raise SystemExit(f"no work is called {', '.join(sorted(unknown))}; there are: {', '.join(w.name for w in WORKS)}")
        engines = tuple(args.engines.split(","))
        if unknown := set(engines) - {OURS, *PEERS}:
            raise SystemExit(f"no engine is called {', '.join(sorted(unknown))}; there are: {', '.join((OURS, *PEERS))}")
        words = [f"--{name}" for name in ("quick", "long", "tiny") if getattr(args, name)]
        words += [f"--{name} {value}" for name in ("models", "works", "ours") if (value := getattr(args, name))]
        return cls(
            models=models, engines=engines, works=tuple(chosen), weights=args.ours, minutes=args.minutes or 0.0, threads=args.threads,
            python=args.python, is_quick=args.quick, is_long=args.long, is_tiny=args.tiny, words=tuple(words),
        )  # fmt: skip

    def span(self, model: str) -> float:
        """Seconds after which no new turn of a model begins."""
        usual = QUICK_MINUTES if self.is_quick else LONG_MINUTES if self.is_long else SPANS.get(model, OTHER_MINUTES)
        return 60 * (self.minutes or usual)

    @property
    def slow(self) -> float:
        """Seconds of a turn beyond which there is no second one."""
        return QUICK_SLOW_S if self.is_quick else math.inf if self.is_long else SLOW_S

    @property
    def key(self) -> dict[str, object]:
        """What must be the same for a journal to be taken up again."""
        return {name: value for name, value in json.loads(json.dumps(asdict(self))).items() if name not in ("python", "engines", "minutes")}

    @property
    def weights_of_ours(self) -> tuple[str, ...]:
        """Formats to try, in order."""
        return (self.weights,) if self.weights else tuple(name for name in ("native", "int4") if name in catalogue.WEIGHTS)


class Run:
    """Turns are dicts: {"model", "engine", "variant", "work", "round"} and figures or an "error"."""

    def __init__(self, plan: Plan, out: Path, *, fresh: bool = False, more: bool = False) -> None:
        """Goes on with the run in `out` that was cut off, or (more) that ended but is out of time; fresh: never."""
        out.mkdir(parents=True, exist_ok=True)
        self.plan, self.out = plan, out
        self.journal = out / "turns.jsonl"
        self.turns: list[dict] = []
        self.id = time.strftime("%Y-%m-%dT%H:%M:%S")
        if not fresh:
            self._take_up(more)
        if not self.turns:
            self.journal.write_text(json.dumps({"run": self.id, "plan": plan.key}) + "\n", encoding="utf-8")
        self.seats = Seats(plan, out)
        self.errors: list[str] = []
        self.failed: dict[tuple[str, str], int] = {}

    def _take_up(self, more: bool) -> None:
        if not self.journal.is_file():
            return
        head, *turns = [json.loads(line) for line in self.journal.read_text(encoding="utf-8").splitlines()]
        if head.get("plan") == self.plan.key and (more or not any(t.get("is_end") for t in turns)):
            self.id, self.turns = head["run"], [t for t in turns if "figures" in t]
            print(f"== bench: goes on with the run of {self.id}, {len(self.turns)} turns are done")

    def _note(self, turn: dict) -> None:
        with self.journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps(turn) + "\n")

    def close(self) -> None:
        self.seats.close()

    # turns

    def measure(self) -> None:
        for model in self.plan.models:
            start = time.monotonic()
            path = pull(model) if model in MODELS else Path(model)
            name = model if model in MODELS else path.stem
            self.seats.take(path)
            orders = OrderBook(path, is_tiny=self.plan.is_tiny)
            works, span, due = list(self._works(name)), self.plan.span(name), start
            for work in works:
                due += span * work.weight / sum(w.weight for w in works)
                self._measure_work(name, work, orders, due=due, end=start + span)
            self.seats.close()
        self._note({"is_end": True})

    def _works(self, model: str) -> Iterator[Work]:
        share = 1.0 if self.plan.is_long else MODELS.get(model, min(MODELS.values()))
        for work in WORKS:
            if work.name in self.plan.works:
                found = sized(work, share, self.plan.is_tiny)
                yield replace(found, rounds=min(found.rounds, 2)) if self.plan.is_quick else found

    def _measure_work(self, model: str, work: Work, orders: OrderBook, *, due: float, end: float) -> None:
        """due: when later rounds are left out, so that the other works have a first one; end: when everything is."""
        takers = [(OURS, v) for v in work.variants if OURS in self.plan.engines]
        takers += [(engine, "") for engine in self.plan.engines if engine != OURS and not work.is_ours]
        left_out: set[tuple[str, str]] = set()
        for number in range(work.rounds):
            for engine, variant in takers:
                done = [t for t in self.turns if (t["model"], t["engine"], t["variant"], t["work"]) == (model, engine, variant, work.name)]
                if any(t["round"] == number for t in done) or (engine, variant) in left_out or self.failed.get((model, engine), 0) >= MAX_FAILED:
                    continue
                if done and (done[0].get("seconds", 0.0) > self.plan.slow or time.monotonic() > due):
                    continue
                if time.monotonic() > end:
                    turn = {"error": f"out of time ({self.plan.span(model) / 60:g} minutes for a model)"}
                else:
                    turn = self._turn(model, engine, variant, work=work, number=number, orders=orders)
                turn = {"model": model, "engine": engine, "variant": variant, "work": work.name, "round": number, **turn}
                if "error" in turn:
                    left_out.add((engine, variant))
                self.turns.append(turn)
                self._note(turn)
                tell(turn, work)

    def _turn(self, model: str, engine: str, variant: str, *, work: Work, number: int, orders: OrderBook) -> dict:
        if work.kind == "arrivals" and orders.rate is None:
            orders.rate = self._rate(model, work, orders)
        order = orders.order(work, number, variant)
        turn = self.seats.turn(engine, work, order)
        if "error" in turn:
            self.errors.append(f"{engine}, {work.name}: {turn['error']}")
            if not turn.pop("is_missing", False):
                self.failed[model, engine] = self.failed.get((model, engine), 0) + 1
            else:
                self.failed[model, engine] = MAX_FAILED
        rate = {"rate": orders.rate} if work.kind == "arrivals" else {}
        return {**turn, **rate, "num": work.num, "prompt_len": work.prompt_len, "num_new": work.num_new, "threads": self.plan.threads}

    def _rate(self, model: str, work: Work, orders: OrderBook) -> float:
        """Requests a second that keep ours busy eight tenths of the time: from a turn in which all come at once."""
        if known := [t["rate"] for t in self.turns if t["model"] == model and t.get("rate")]:
            return known[0]
        orders.rate = 1e9
        turn = self.seats.turn(OURS, work, orders.order(work, 99, work.variants[0])) if OURS in self.plan.engines else {"error": ""}
        return 1.0 if "error" in turn else round(0.8 * work.num / turn["seconds"], 3)

    # rows

    def rows(self, context: Mapping[str, object]) -> list[dict[str, object]]:
        """A row per engine and work, each with how far its greedy answers are llama.cpp's."""
        titles = {w.name: w.figure for w in WORKS}
        found = rows_of(self.turns, titles)
        for row in found:
            row |= {"run": self.id, "is_quick": self.plan.is_quick, "unit": UNITS.get(str(row.get("figure"))), "date": self.id[:10], **context}
            shares = [
                agreement(a, b)
                for mine in self.turns
                for other in self.turns
                if mine.get("answers") and other.get("answers") and all(mine[k] == row[k] for k in ("model", "engine", "variant", "work"))
                if other["engine"] == "llama.cpp" and all(mine[k] == other[k] for k in ("model", "work", "round"))
                for a, b in zip(mine["answers"], other["answers"])
            ]
            if shares:
                row["same_as_llama_cpp"] = round(sum(shares) / len(shares), 3)
        return found

    def write(self, rows: list[dict[str, object]], path: Path) -> None:
        """Appends, in place of rows of the same run."""
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        kept = [line for line in lines if json.loads(line).get("run") != self.id]
        path.write_text("\n".join([*kept, *(json.dumps(row, sort_keys=True) for row in rows)]) + "\n", encoding="utf-8")
        print(f"== bench: {len(rows)} rows in {path.parent.name}/{path.name}")


def tell(turn: Mapping, work: Work) -> None:
    """One line of progress."""
    name = f"{turn['engine']} {turn['variant']}".strip()
    value = turn.get("figures", {}).get(work.figure)
    said = turn["error"] if "error" in turn else f"{turn['seconds']:6.1f} s" if value is None else f"{value:10.1f} {UNITS[work.figure]}"
    print(f"{turn['model']:<20} {work.name:<12} {turn['round'] + 1}/{work.rounds}  {name:<22} {said}  {turn.get('head', '')!r}", flush=True)
