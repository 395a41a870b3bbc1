"""Times by a card's own clock."""

from collections.abc import Callable, Sequence

import torch


def seconds_of(calls: Sequence[Callable[[], object]], num_rounds: int) -> float:
    """Per call, from a recorded graph of so many rounds of all of them."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(num_rounds):
            for call in calls:
                call()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    graph.replay()
    start.record()
    graph.replay()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3 / num_rounds / len(calls)
