"""What guesses ahead, by name."""

from collections.abc import Iterator
from pathlib import Path

from ponder.accelerate.accept.bild import BigLittle
from ponder.accelerate.accept.coupled import Coupled
from ponder.accelerate.accept.greedy import GreedyMatch
from ponder.accelerate.accept.rejection import Rejection
from ponder.accelerate.accept.trust import Trust
from ponder.accelerate.accept.typical import Typical
from ponder.accelerate.draft.bridge import KIND as BRIDGE
from ponder.accelerate.draft.bridge import load_bridge
from ponder.accelerate.draft.copyspec import CopySpec
from ponder.accelerate.draft.draft_model import DraftModel
from ponder.accelerate.draft.early_exit import EarlyExit
from ponder.accelerate.draft.first import First
from ponder.accelerate.draft.followers import KIND as FOLLOWERS
from ponder.accelerate.draft.followers import load_followers
from ponder.accelerate.draft.griffin import Griffin
from ponder.accelerate.draft.heads import load_heads
from ponder.accelerate.draft.hydra import Hydra
from ponder.accelerate.draft.hydra_heads import KIND as HYDRA
from ponder.accelerate.draft.hydra_heads import load_hydra
from ponder.accelerate.draft.layer_skip import LayerSkip
from ponder.accelerate.draft.medusa import Medusa
from ponder.accelerate.draft.ngram import Ngram
from ponder.accelerate.draft.superposed import Superposed
from ponder.accelerate.draft.token_recycling import TokenRecycling
from ponder.accelerate.draft.trie import Trie
from ponder.accelerate.length.accept_head import load_accept_head
from ponder.accelerate.length.expected import Expected
from ponder.accelerate.length.fixed import Fixed
from ponder.accelerate.length.specdecpp import SpecDecPP
from ponder.accelerate.length.threshold import Threshold
from ponder.core.draft import Acceptor, Drafter, LengthControl, Speculation
from ponder.core.errors import BadField
from ponder.core.tensor_file import kind_of
from ponder.run.spec import FilesToo, Specs

DRAFTERS: dict[str, Drafter] = {
    "draft_model": DraftModel(weights="int4"), "layer_skip": LayerSkip(), "griffin": Griffin(), "early_exit": EarlyExit(), "superposed": Superposed(),
    "ngram": Ngram(), "copyspec": CopySpec(), "trie": Trie(),
    "token_recycling": TokenRecycling(), "copy_or_recycle": First(drafters=(CopySpec(), TokenRecycling())),
}  # fmt: skip

TRAINED_DRAFTERS = {  # those that hold what `ponder train-heads`, `train-bridge` and benchmarks/train_drafters.py trained
    "medusa": Medusa, "hydra": Hydra, "early_exit": EarlyExit, "token_recycling": TokenRecycling,
}  # fmt: skip

ACCEPTORS: dict[str, Acceptor] = {
    "coupled": Coupled(), "greedy": GreedyMatch(), "rejection": Rejection(), "typical": Typical(), "bild": BigLittle(), "trust": Trust(),
}  # fmt: skip

LENGTHS: dict[str, LengthControl] = {
    "expected": Expected(), "fixed": Fixed(), "threshold": Threshold(),
}  # fmt: skip

TRAINED_LENGTHS = {"specdecpp": SpecDecPP}  # those that hold a trained head (`ponder train-length`)


def open_drafter(path: Path) -> Drafter:
    """Medusa or Hydra with the heads in that file, early exit with its bridge, recycling with its table. Raises BadField, StoreError."""
    kind = kind_of(path, "name a file that `ponder train-heads` or `ponder train-bridge` wrote")
    if kind == BRIDGE:
        return TRAINED_DRAFTERS["early_exit"](bridge=load_bridge(path))
    if kind == HYDRA:
        return TRAINED_DRAFTERS["hydra"](heads=load_hydra(path))
    if kind == FOLLOWERS:
        table = load_followers(path)
        return TRAINED_DRAFTERS["token_recycling"](over="session", warm=table, rows=len(table.rows), shares=table.shares)
    return TRAINED_DRAFTERS["medusa"](heads=load_heads(path))


def open_length(path: Path) -> LengthControl:
    """SpecDec++ with the acceptance head in that file. Raises BadField, StoreError."""
    return TRAINED_LENGTHS["specdecpp"](head=load_accept_head(path))


DRAFT_SPECS = (
    Specs("drafter", FilesToo(DRAFTERS, ".safetensors", open_drafter), {}),
    Specs("acceptor", ACCEPTORS, {}),
    Specs("length control", FilesToo(LENGTHS, ".safetensors", open_length), {}),
)


def speculation(spec: str) -> Speculation:
    """What DRAFTER, DRAFTER/ACCEPTOR or DRAFTER/ACCEPTOR/LENGTH means, each NAME or NAME:field=value,...; by default coupled and expected.
    Raises UnknownName or BadField."""
    given = list(parts_of(spec))
    if len(given) > 3:
        raise BadField(
            f"draft {spec!r}: has {len(given)} parts; write DRAFTER, DRAFTER/ACCEPTOR or DRAFTER/ACCEPTOR/LENGTH, as in ngram/coupled/fixed:num=4; "
            "a file of what was trained ends in .safetensors"
        )
    found = [specs.read(text) for specs, text in zip(DRAFT_SPECS, [*given, *("", "coupled", "expected")[len(given) :]])]
    return Speculation(drafter=found[0], acceptor=found[1], control=found[2])  # type: ignore[arg-type]


def parts_of(spec: str) -> Iterator[str]:
    """What slashes part, but for those in paths of files of trained heads."""
    named = {name for specs in DRAFT_SPECS for name in specs.table}
    rest: str | None = spec
    while rest is not None:
        name, file = rest.partition("/")[0], rest.partition(".safetensors")
        start = len(file[0]) if file[1] and name.partition(":")[0] not in named else 0
        part = rest[:start] + rest[start:].partition("/")[0]
        yield part
        rest = rest[len(part) + 1 :] if len(part) < len(rest) else None
