"""Readers of answers, verifiers, and the scorers that tasks use, by name."""

from pathlib import Path

from ponder.core.asks import AnswerReader, WholeText
from ponder.core.roles import Verifier
from ponder.infer.particle_filter import MeanProbability
from ponder.infer.self_evaluation import NoBetterRestart
from ponder.verify.answers import Choice, Code, Latex, Number, ShortText
from ponder.verify.arithmetic import Arithmetic
from ponder.verify.constant import Constant
from ponder.verify.exact import Exact
from ponder.verify.generated_tests import GeneratedTests
from ponder.verify.heads import load_head
from ponder.verify.math_equal import MathEqual
from ponder.verify.mean_log_p import MeanLogP
from ponder.verify.numeric import Numeric
from ponder.verify.p_ik import PIK
from ponder.verify.p_true import PTrue
from ponder.verify.pairwise import Pairwise
from ponder.verify.probe_head import ProbeHead
from ponder.verify.program_agreement import ProgramAgreement
from ponder.verify.public_tests import PublicTests
from ponder.verify.self_certainty import SelfCertainty
from ponder.verify.unit_tests import UnitTests
from ponder.verify.value_prompt import ValuePrompt
from ponder.verify.yes_no import YesNo

READERS: dict[str, AnswerReader] = {
    "text": WholeText(),
    "number": Number(),
    "math": Latex(),
    "choice": Choice(),
    "short": ShortText(),
    "code": Code(),
}

VERIFIERS: dict[str, Verifier] = {  # those that need no reference: strategies may use them
    "mean_probability": MeanProbability(),
    "no_better_restart": NoBetterRestart(),
    "mean_log_p": MeanLogP(),
    "self_certainty": SelfCertainty(),
    "p_true": PTrue(),
    "value_prompt": ValuePrompt(),
    "yes_no": YesNo(),
    "pairwise": Pairwise(),
    "program_agreement": ProgramAgreement(),
    "arithmetic": Arithmetic(),
    "public_tests": PublicTests(),
    "generated_tests": GeneratedTests(),
    "constant": Constant(),
}

SCORERS = {  # those that know the reference: tasks use them, strategies never see them
    "exact": Exact,
    "numeric": Numeric,
    "math_equal": MathEqual,
    "unit_tests": UnitTests,
}

TRAINED = {  # those that hold a trained head, by which of a candidate's states it knows (`ponder train-verifier`)
    "last": ProbeHead,
    "prompt": PIK,
}


def open_verifier(path: Path) -> Verifier:
    """The verifier with the trained head in that file. Raises BadField, StoreError."""
    head = load_head(path)
    return TRAINED[head.place](head=head)  # type: ignore[no-any-return]
