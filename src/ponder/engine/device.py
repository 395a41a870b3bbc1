"""The device that a process computes on, by name."""

import torch

from ponder.core.errors import BadField

KINDS = ("cpu", "cuda")


def find_device(name: str) -> torch.device:
    """The device called `name`: "cpu", "cuda" or "cuda:1". Raises BadField when it is not here."""
    kind, _, number = name.partition(":")
    if kind not in KINDS or (number and not number.isdigit()) or (kind == "cpu" and number):
        raise BadField(f"device={name!r}: must be 'cpu', 'cuda' or 'cuda:N'; name one of them")
    if kind == "cpu":
        return torch.device("cpu")
    num = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not num:
        raise BadField(f"device={name!r}: PyTorch {torch.__version__} finds no CUDA card here; install a CUDA build where one is, or take 'cpu'")
    if int(number or 0) >= num:
        raise BadField(f"device={name!r}: there are {num} CUDA cards; take 'cuda:0' to 'cuda:{num - 1}'")
    return torch.device("cuda", int(number or 0))
