"""What guesses ahead, by name."""

from pathlib import Path

from ponder.accelerate.accept.bild import BigLittle
from ponder.accelerate.accept.coupled import Coupled
from ponder.accelerate.accept.greedy import GreedyMatch
from ponder.accelerate.accept.rejection import Rejection
from ponder.accelerate.accept.typical import Typical
from ponder.accelerate.draft.copyspec import CopySpec
from ponder.accelerate.draft.draft_model import DraftModel
from ponder.accelerate.draft.first import First
from ponder.accelerate.draft.heads import load_heads
from ponder.accelerate.draft.layer_skip import LayerSkip
from ponder.accelerate.draft.medusa import Medusa
from ponder.accelerate.draft.ngram import Ngram
from ponder.accelerate.draft.superposed import Superposed
from ponder.accelerate.draft.token_recycling import TokenRecycling
from ponder.accelerate.draft.trie import Trie
from ponder.accelerate.length.expected import Expected
from ponder.accelerate.length.fixed import Fixed
from ponder.accelerate.length.threshold import Threshold
from ponder.core.draft import Acceptor, Drafter, LengthControl, Speculation
from ponder.core.errors import BadField
from ponder.run.spec import FilesToo, Specs

DRAFTERS: dict[str, Drafter] = {
    "draft_model": DraftModel(weights="int4"), "layer_skip": LayerSkip(), "superposed": Superposed(),
    "ngram": Ngram(), "copyspec": CopySpec(), "trie": Trie(),
    "token_recycling": TokenRecycling(), "copy_or_recycle": First(drafters=(CopySpec(), TokenRecycling())),
}  # fmt: skip

TRAINED_DRAFTERS = {"medusa": Medusa}  # those that hold trained heads (`ponder train-heads`)

ACCEPTORS: dict[str, Acceptor] = {
    "coupled": Coupled(), "greedy": GreedyMatch(), "rejection": Rejection(), "typical": Typical(), "bild": BigLittle(),
}  # fmt: skip

LENGTHS: dict[str, LengthControl] = {
    "expected": Expected(), "fixed": Fixed(), "threshold": Threshold(),
}  # fmt: skip


def open_drafter(path: Path) -> Drafter:
    """Medusa with the heads in that file. Raises BadField, StoreError."""
    return TRAINED_DRAFTERS["medusa"](heads=load_heads(path))


DRAFT_SPECS = (
    Specs("drafter", FilesToo(DRAFTERS, ".safetensors", open_drafter), {}),
    Specs("acceptor", ACCEPTORS, {}),
    Specs("length control", LENGTHS, {}),
)


def speculation(spec: str) -> Speculation:
    """What DRAFTER, DRAFTER/ACCEPTOR or DRAFTER/ACCEPTOR/LENGTH means, each NAME or NAME:field=value,...; by default coupled and expected.
    Raises UnknownName or BadField."""
    file, suffix, rest = spec.rpartition(".safetensors")  # a file of trained heads, whose path may have slashes
    given = (rest if suffix else spec).split("/")
    given[0] = file + suffix + given[0]
    if len(given) > 3:
        raise BadField(
            f"draft {spec!r}: has {len(given)} parts; write DRAFTER, DRAFTER/ACCEPTOR or DRAFTER/ACCEPTOR/LENGTH, as in ngram/coupled/fixed:num=4"
        )
    found = [specs.read(text) for specs, text in zip(DRAFT_SPECS, [*given, *("", "coupled", "expected")[len(given) :]])]
    return Speculation(drafter=found[0], acceptor=found[1], control=found[2])  # type: ignore[arg-type]
