"""The workers of one model: started when first asked, warmed up once per work, started anew after a failure."""

from argparse import Namespace
from pathlib import Path

from peers.figures import HEAD, turn_figures
from peers.handle import Worker, WorkerFailed
from peers.works import OURS, Work
from ponder.models.tokenizer import open_tokenizer

BEGIN_S, LOAD_S, TURN_S, WARM_S = 90.0, 200.0, 120.0, 60.0  # longest waits
NUM_KEPT = 3  # answers of a turn that are kept for comparison


class Seats:
    """plan: a run.Plan; out: where logs and rewritten files go."""

    def __init__(self, plan: Namespace, out: Path) -> None:
        self.plan, self.out = plan, out
        self.workers: dict[str, Worker] = {}
        self.loaded: dict[str, dict] = {}
        self.missing: dict[str, str] = {}
        self.warmed: set[tuple[str, str]] = set()

    def take(self, path: Path) -> None:
        """Another model from now on."""
        self.close()
        self.path, self.tokenizer = path, open_tokenizer(path)

    def close(self) -> None:
        for engine in list(self.workers):
            self._end(engine)

    def _end(self, engine: str) -> None:
        self.workers.pop(engine).quit()
        self.warmed = {pair for pair in self.warmed if pair[0] != engine}

    def _begin(self, engine: str) -> Worker:
        env = {
            "OMP_NUM_THREADS": str(self.plan.threads), "PEERS_CACHE": str(self.out), "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error",
        }  # fmt: skip
        (self.out / "logs").mkdir(exist_ok=True)
        python = self.plan.python if engine != OURS else None
        worker = Worker(engine, python, self.out / "logs" / f"{engine}.txt", env)
        try:
            worker.begin(BEGIN_S)
        except WorkerFailed:
            worker.kill()
            raise
        return worker

    def _load(self, worker: Worker) -> dict:
        options = self.plan.weights_of_ours if worker.engine == OURS else ("",)
        for option in options:
            try:
                return worker.ask({"do": "load", "path": str(self.path), "threads": self.plan.threads, "option": option}, LOAD_S)
            except WorkerFailed:
                if option == options[-1] or not worker.is_alive:
                    raise
        raise AssertionError("no weight format to try")

    def turn(self, engine: str, work: Work, order: dict) -> dict:
        """One turn's figures, answers and circumstances, or {"error"}; "is_missing" when the engine cannot even begin."""
        if engine in self.missing:
            return {"error": self.missing[engine], "is_missing": True}
        try:
            return self._fresh_turn(engine, order) if work.kind == "start" else self._seated_turn(engine, work, order)
        except (WorkerFailed, ValueError) as error:
            if engine in self.workers:
                self._end(engine)  # what it still holds must not burden the next turn
            missing = {"is_missing": True} if engine in self.missing else {}
            return {"error": str(error), **missing}

    def _started(self, engine: str) -> Worker:
        try:
            return self._begin(engine)
        except WorkerFailed as error:
            self.missing[engine] = str(error)
            raise

    def _fresh_turn(self, engine: str, order: dict) -> dict:
        """A worker that loads, answers once and ends."""
        worker = self._started(engine)
        try:
            loaded = self._load(worker)
            reply = worker.ask({**order, "warm": None}, TURN_S)
        finally:
            worker.quit()
        firsts = [row[0] for row in reply["times"] if row] or [reply["seconds"]]
        turn_figures(order["work"], reply)
        figures = {"load_s": loaded["seconds"], "first_s": loaded["seconds"] + min(firsts), "peak_mb": reply["peak_mb"], "anon_mb": reply["anon_mb"]}
        told = self._told(order["work"], reply, loaded, {k: v for k, v in figures.items() if v is not None})
        return {**told, "seconds": loaded["seconds"] + reply["seconds"]}

    def _seated_turn(self, engine: str, work: Work, order: dict) -> dict:
        if engine not in self.workers:
            self.workers[engine] = self._started(engine)
            self.loaded[engine] = self._load(self.workers[engine])
        worker = self.workers[engine]
        warm = order["warm"] if (engine, work.name) not in self.warmed else None
        reply = worker.ask({**order, "warm": warm, "peak": "new"}, TURN_S + (WARM_S if warm else 0.0))
        self.warmed.add((engine, work.name))
        figures = turn_figures(order["work"], reply)
        if reply["peak_mb"] is not None:
            figures["peak_mb"] = reply["peak_mb"]
        return self._told(order["work"], reply, self.loaded[engine], figures)

    def _told(self, work: dict, reply: dict, loaded: dict, figures: dict[str, float]) -> dict:
        answers = reply["texts"] or [self.tokenizer.decode(ids) for ids in reply["ids"][:NUM_KEPT]]
        kept = {} if work["kind"] in ("samples", "start") else {"answers": answers[:NUM_KEPT]}
        return {
            "figures": figures, "seconds": reply["seconds"], "head": answers[0][:HEAD], **kept, "load": reply["load"],
            **{key: loaded[key] for key in ("setting", "versions", "file", "sha256")},
        }  # fmt: skip
