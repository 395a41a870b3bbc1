"""What a drafter would have got of texts that are there: rounds replayed from tokens and states, without a model's pass.

The drafter is asked as the engine would ask it, behind every committed token, and of its tree the path that the text takes is accepted,
with the token behind it, as by the greedy or the coupled acceptor. Off that path nothing is shown to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ponder.core.draft import EMPTY, ROOT, Context, Drafter, Host, Tree, Verified


@dataclass(frozen=True)
class Line:
    """A text: the prompt's tokens, the text's, and the states [N, D] that these were drawn from."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    states_ND: Tensor


@dataclass(frozen=True)
class Score:
    """Of one text."""

    rounds: int
    accepted: int
    drafted: int


def replayed(drafter: Drafter, host: Host, lines: Sequence[Line], *, room: int, max_depth: int = 32) -> list[Score]:
    """Rounds of every text, all of them side by side."""
    drafting = drafter.open(host)
    done = {i: 1 for i, line in enumerate(lines) if line.tokens}
    found = {i: Score(0, 0, 0) for i in range(len(lines))}
    drafting.observe([shown(i, lines[i], 0, 1) for i in done])
    while live := [i for i in done if done[i] < len(lines[i].tokens)]:
        contexts = [
            Context(
                request=i, tokens=[*lines[i].prompt, *lines[i].tokens[: done[i]]], num_prompt=len(lines[i].prompt), room=room,
                max_depth=min(max_depth, len(lines[i].tokens) - done[i]),
            )
            for i in live
        ]  # fmt: skip
        news = []
        for i, tree in zip(live, drafting.propose(contexts), strict=True):
            at = done[i]
            num = agreed(tree, lines[i].tokens[at:])
            was, stop = found[i], min(at + num + 1, len(lines[i].tokens))
            found[i] = Score(was.rounds + 1, was.accepted + stop - 1 - at, was.drafted + len(tree))
            done[i] = stop
            news.append(shown(i, lines[i], at, stop))
        drafting.observe(news)
    return [found[i] for i in range(len(lines))]


def shown(request: int, line: Line, start: int, stop: int) -> Verified:
    """A round that committed tokens start .. stop, of which the state of the last alone is known to be asked for."""
    return Verified(request=request, tree=EMPTY, path=(), tokens=line.tokens[start:stop], hidden=line.states_ND[stop - 1 : stop])


def agreed(tree: Tree, coming: Sequence[int]) -> int:
    """Tokens of the longest path that the text takes."""
    at, num = ROOT, 0
    for token in coming:
        following = next((i for i in tree.children[at] if tree.tokens[i] == token), None)
        if following is None:
            break
        at, num = following, num + 1
    return num
