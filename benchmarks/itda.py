"""Dictionaries of real hidden states (ITDA): how well they rebuild unseen states, and how alike two models read the same texts.

    python benchmarks/itda.py [PASSAGES]

Texts are questions of GSM8K, read as a completion of one fixed prompt; a state is the model's last one at the end of a word, where
every model has a token's end, less the mean state. Its name is (text, characters read), so it means the same in every model. The
last quarter of the texts is held out. Each dictionary is set beside as many random directions, as many of the seen states taken
at random, and as many principal components; every state gets `COEFFICIENTS` numbers from each. Left: share of variance not rebuilt.
"""

import sys
from dataclasses import dataclass

import torch
from lib.rows import append
from torch import Tensor

from ponder.catalogue import open_model, task
from ponder.core.asks import Prefix, Prompt, Read, Readings
from ponder.engine.process import LocalProcess
from ponder.models.fetch import pull
from ponder.testing.run import answer_turn
from ponder.train.itda import Dictionary, build, similarity, unexplained
from ponder.train.rollouts import Whole

MODELS = (("smollm2-135m", "native"), ("smollm2-135m", "bf16"), ("smollm2-135m", "int4"), ("qwen2.5-coder-0.5b", "native"))
ERRORS = (0.7, 0.5, 0.35)  # squared length that a state may keep and still be no atom
COEFFICIENTS = 8
BATCH = 16  # texts in one step
ASKED = "Read this text."
Name = tuple[int, int]  # (number of the text, characters read)


@dataclass(frozen=True)
class Seen:
    """States of one model, a row per name, and which of them are held out."""

    model: str
    names: tuple[Name, ...]
    states_ND: Tensor


def read_states(process: LocalProcess, texts: list[str]) -> dict[Name, Tensor]:
    """The state after every token that ends where a word ends, by name."""
    found: dict[Name, Tensor] = {}
    for start in range(0, len(texts), BATCH):
        reads, names = [], []
        for number, text in enumerate(texts[start : start + BATCH], start):
            tokens = tuple(process.tokenizer.encode(text))
            ends = word_ends(text, [process.tokenizer.pieces[token] for token in tokens])
            prompt = Prompt(messages=(("user", ASKED),), max_tokens=len(tokens) + 1)
            reads.append(Read(prefix=Prefix(prompt, tokens, text), probe=Whole(), places=tuple(place for place, _ in ends)))
            names.append([(number, at) for _, at in ends])
        for told, named in zip(answer_turn(reads, process), names, strict=True):
            assert isinstance(told, Readings)
            found |= {name: torch.tensor(row) for name, row in zip(named, told.rows, strict=True)}
    return found


def word_ends(text: str, pieces: list[bytes]) -> list[tuple[int, int]]:
    """(number of tokens read, characters read) wherever a token's end is a word's end."""
    ends, data = [], b""
    for place, piece in enumerate(pieces, 1):
        data += piece
        at = len(data.decode(errors="ignore"))
        if data.decode(errors="ignore") == text[:at] and text[at - 1 : at].isalnum() and not text[at : at + 1].isalnum():
            ends.append((place, at))
    return ends


def collected(num: int) -> list[Seen]:
    """What every model says of the same names, centred."""
    texts = [item.prompt.question[-400:] for item in task("gsm8k").items("dev")[:num]]
    raw = {f"{model}/{weights}": read_states(open_model(pull(model), weights), texts) for model, weights in MODELS}
    shared = sorted(set.intersection(*map(set, raw.values())))
    return [Seen(model, tuple(shared), centred(torch.stack([states[name] for name in shared]))) for model, states in raw.items()]


def centred(states_ND: Tensor) -> Tensor:
    return states_ND - states_ND.mean(0)


def random_directions(num: int, width: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(num, width, generator=torch.Generator().manual_seed(0)), dim=1)


def reconstruction(seen: Seen, num_old: int, error: float) -> Dictionary:
    """Builds a dictionary on the first `num_old` states and notes what it and its rivals leave of the others."""
    old, new = seen.states_ND[:num_old], seen.states_ND[num_old:]
    found = build(old, seen.names[:num_old], num=COEFFICIENTS, error=error)
    size, width = found.atoms_MD.shape
    picks = torch.randperm(num_old, generator=torch.Generator().manual_seed(1))[:size]
    rivals = {
        "itda": found.atoms_MD,
        "seen": torch.nn.functional.normalize(old[picks], dim=1),
        "random": random_directions(size, width),
        "components": torch.linalg.svd(old, full_matrices=False).Vh[: min(size, width)],
    }
    left = {name: round(unexplained(new, Dictionary(atoms, ()), num=COEFFICIENTS), 4) for name, atoms in rivals.items()}
    append("itda", {"what": "reconstruction", "model": seen.model, "error": error, "atoms": size, "width": width, "coefficients": COEFFICIENTS,
                    "num_old": num_old, "num_new": len(new), "left": left})  # fmt: skip
    return found


def main() -> None:
    num = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    everything = collected(num)
    names = everything[0].names
    num_old = sum(text < num * 3 // 4 for text, _ in names)
    for error in ERRORS:
        found = {seen.model: reconstruction(seen, num_old, error) for seen in everything}
        for i, one in enumerate(found):
            for other in list(found)[i + 1 :]:
                a, b = len(found[one].names), len(found[other].names)
                both = a * b / num_old  # as many names as two random choices would share
                append("itda", {"what": "similarity", "models": [one, other], "error": error, "atoms": [a, b], "num_old": num_old,
                                "jaccard": round(similarity(found[one], found[other]), 4), "by_chance": round(both / (a + b - both), 4)})  # fmt: skip


if __name__ == "__main__":
    main()
