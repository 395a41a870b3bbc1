"""One question, three strategies, one budget: the default model answers, and says what it cost."""

from ponder import Budget, catalogue, chat, open_model, pull
from ponder.run.driver import Driver, Job
from ponder.run.recipe import Recipe


def main() -> None:
    process = open_model(pull("smollm2-135m"))
    prompt = chat("What is the capital of France? Answer with one word.", max_tokens=8, answers=catalogue.READERS["short"])
    recipes = [
        Recipe(label=name, strategy=catalogue.strategy(name), budget=Budget(tokens=200))
        for name in ("greedy", "self_consistency:num=4", "beam:width=3")
    ]
    jobs = [Job(id=recipe.label, prompt=prompt, recipe=recipe, seed=0) for recipe in recipes]
    for job, result in Driver(process).run(jobs):
        sure = "" if result.confidence is None else f", {result.confidence:.0%} sure"
        print(f"{job.id:22} {result.answer!r}{sure}; {result.cost.tokens} tokens, {result.stop_reason}")


if __name__ == "__main__":
    main()
