"""A strategy of one's own, from nothing: ask for answers one at a time until two agree. Runs on the toy model."""

from dataclasses import dataclass

from ponder import Budget, Extend, Outcome, Prefix, Prompt, Turn
from ponder.core.asks import candidate
from ponder.core.guarantee import Guarantee
from ponder.core.rng import Rng
from ponder.core.roles import Asking
from ponder.run.driver import Driver, Job
from ponder.run.recipe import Recipe
from ponder.testing.toy import ToyProcess, toy_lm


@dataclass(frozen=True, kw_only=True)
class UntilTwoAgree:
    most: int = 8  # answers

    guarantee = Guarantee.BIASED

    def run(self, prompt: Prompt, rng: Rng) -> Asking:
        found = []
        for i in range(self.most):
            (told,) = yield Turn((Extend(prefix=Prefix(prompt), seed=rng.seed(i)),), tuple(found[-1:]))
            found.append(candidate(told.prefix))
            if found[-1].answer and any(earlier.answer == found[-1].answer for earlier in found[:-1]):
                break
        return Outcome((found[-1], *found[:-1]), diagnostics={"answers": len(found)})


def main() -> None:
    recipe = Recipe(label="until two agree", strategy=UntilTwoAgree(), budget=Budget(tokens=100))
    job = Job(id="first", prompt=Prompt(messages=(("raw", "a"),), max_tokens=3), recipe=recipe, seed=1)
    for _, result in Driver(ToyProcess(toy_lm())).run([job]):
        print(f"{result.answer!r} after {result.diagnostics['answers']} answers and {result.cost.tokens} tokens: {result.stop_reason}")


if __name__ == "__main__":
    main()
