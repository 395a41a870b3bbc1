"""The grid of a study: strategies x verifiers x budgets, each cell a recipe, all of them on the same stored samples.

Cells draw sample i of a question with one seed, so a cell that votes or judges over samples that another cell drew costs the model
nothing. One folder per task (run/compare.py): resumable after kill -9 with the same bytes. Programs that were scored once are
remembered beside the samples (scores.jsonl), since running a test suite costs more than drawing a short answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ponder.core.budget import Budget
from ponder.core.errors import BadField
from ponder.core.roles import Process
from ponder.run.compare import Comparison, Named, Row, RunFolder, compare, settings_of
from ponder.run.question import Question, Scores
from ponder.run.recipe import Recipe
from ponder.run.spec import Specs

BASELINE = "greedy"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Specs of strategies, verifiers by name, and budgets in samples.

    A strategy with a field `num` that its spec leaves open gets every budget; one that judges by a verifier which its spec leaves
    open gets every verifier. The first verifier is the one that best-of-N, the yardstick, judges by.
    """

    strategies: tuple[str, ...]
    verifiers: tuple[str, ...]
    budgets: tuple[int, ...]
    draw: str = "temperature=0.8"  # how samples are drawn where a spec leaves it open, as in "temperature=0.5,top_p=0.95"

    def __post_init__(self) -> None:
        if not self.verifiers or not self.budgets or min(self.budgets) < 1:
            raise BadField(f"study verifiers={self.verifiers}, budgets={self.budgets}: name at least one verifier, and budgets of at least 1 sample")
        if not all(part.count("=") == 1 for part in self.draw.split(",")):
            raise BadField(f"study draw={self.draw!r}: must be settings of sampling, as in temperature=0.5,top_p=0.95")

    def cells(self, specs: Specs) -> tuple[str, ...]:
        """Specs of all cells, the baseline first and the pool second; each once."""
        open_ones = [BASELINE, self.pool_cell, *(with_field("best_of_n", "verifier", v) for v in self.verifiers)]
        return tuple(dict.fromkeys(cell for spec in (*open_ones, *self.strategies) for cell in self._expanded(spec, specs)))

    def _expanded(self, spec: str, specs: Specs) -> list[str]:
        fields = specs.settable(specs.read(spec))
        found = [spec]
        if fields.get("verifier") is not None and "verifier=" not in spec:
            found = [with_field(each, "verifier", v) for each in found for v in self.verifiers]
        if "num" in fields and "num=" not in spec:
            found = [with_field(each, "num", n) for each in found for n in self.budgets]
        return [self._drawn(each, specs) for each in found]

    def _drawn(self, spec: str, specs: Specs) -> str:
        """`spec` with those settings of `draw` that it has and leaves open. Its own default needs no saying."""
        if spec == BASELINE:
            return spec
        fields = specs.settable(specs.read(spec))
        for name, value in (part.split("=") for part in self.draw.split(",")):
            if name in fields and f"{name}=" not in spec and str(fields[name]) != value:
                spec = with_field(spec, name, value)
        return spec

    @property
    def pool_cell(self) -> str:
        """Whose samples coverage, decomposition and lengths are read from."""
        return f"sample:{self.draw},num={max(self.budgets)}"


def with_field(spec: str, name: str, value: object) -> str:
    return f"{spec}{',' if ':' in spec else ':'}{name}={value}"


def run_grid(
    process: Process, cells: dict[str, Recipe], questions: Sequence[Question], *, out: Path, task: str, seed: int, resume: bool,
    on_row: Callable[[Row], None] = lambda row: None,
) -> tuple[Comparison, list[Question]]:  # fmt: skip
    """Every cell on every question of one task, into `out`. Returns the questions too, with their scores remembered."""
    folder = grid_folder(process, cells, questions, out=out, task=task, seed=seed, resume=resume)
    return fill_grid(process, cells, questions, folder=folder, seed=seed, on_row=on_row)


def grid_folder(
    process: Named, cells: dict[str, Recipe], questions: Sequence[Question], *, out: Path, task: str, seed: int, resume: bool
) -> RunFolder:
    folder = RunFolder(out, settings_of(process, list(cells.values()), questions, task=task, seed=seed)).open(resume=resume)
    folder.scores = Scores(out / "scores.jsonl").open()
    return folder


def fill_grid(
    process: Named, cells: dict[str, Recipe], questions: Sequence[Question], *, folder: RunFolder, seed: int,
    on_row: Callable[[Row], None] = lambda row: None, run: Callable[..., Comparison] = compare,
) -> tuple[Comparison, list[Question]]:  # fmt: skip
    """As run_grid, into an opened folder, which is closed. run: run.compare's function, or what does the same on other machines."""
    assert folder.scores is not None
    try:
        found = run(process, list(cells.values()), questions, folder=folder, seed=seed, on_row=on_row)
        return found, [folder.scores.of(q) for q in questions]
    finally:
        folder.close()


def recipes_of(grid: Grid, specs: Specs, limits: Budget) -> dict[str, Recipe]:
    return {cell: Recipe(label=cell, strategy=specs.read(cell), budget=limits) for cell in grid.cells(specs)}  # type: ignore[arg-type]
