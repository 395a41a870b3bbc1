"""The evaluation of long prompts: contexts say what their questions ask, forks answer as the engine does, differences are paired."""

import importlib
import math
import random
import sys
from pathlib import Path

import pytest
import torch

from engine.test_process import answers
from engine.tiny_models import ByteTokenizer, tiny_decoder
from ponder.accelerate.schedule.sarathi import Sarathi
from ponder.catalogue import cache_policy
from ponder.core.asks import Extend, Prefix, Sampling, chat
from ponder.engine.keeping_process import KeepingProcess
from ponder.engine.process import LocalProcess, Settings
from ponder.models.tokenizer import folder_tokenizer

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
forks, long_rows, long_tasks, recall, recall_train = (
    importlib.import_module(name) for name in ("lib.forks", "lib.long_rows", "lib.long_tasks", "lib.recall", "recall_train")
)


def test_recall_contexts_say_what_is_asked(tmp_path: Path):
    (context,) = long_tasks.recall_contexts(300, 1)
    words = context.text.split()
    for first, second in context.turns:
        for question in (first, second):
            keys, said = question.text.split()[1:-1], question.answer.split()
            assert said == [w for key in keys for w in (key, words[words.index(key) + 1])] + ["."]
        assert not set(first.text.split()[1:-1]) & set(second.text.split()[1:-1])
    recall.write_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(f'{{"vocab_size": {recall.VOCAB}, "eos_token_id": {recall.END}}}')
    tokenizer = folder_tokenizer(tmp_path)
    assert [recall.WORDS[t] for t in tokenizer.render((("user", context.text),))] == words
    assert tokenizer.eos_ids == {recall.END}


def test_stretched_positions_keep_pairs_together_and_reach_far():
    reached = []
    for seed in range(40):
        tokens, positions, wanted, crowd = recall_train.sequence(random.Random(seed), 96, 12, 3, 33000)
        assert len(tokens) == len(positions) == len(wanted)
        steps = torch.tensor(positions).diff()
        assert (steps >= 1).all()
        values = [i for i, t in enumerate(tokens) if recall.NUM_KEYS <= t < recall.NUM_KEYS + recall.NUM_VALUES]
        assert all(steps[i - 1] == 1 for i in values), "a pair is torn apart"
        assert all(w == tokens[i + 1] for i, w in enumerate(wanted) if w != recall_train.MASK)
        assert positions[96] / 96 == pytest.approx(math.exp(crowd), rel=0.02)
        reached.append(positions[-1])
    assert max(reached) > 20000 and min(reached) < 1000


SAID = (70, 101, 32, 99)


def log_p(made, fork) -> float:
    """Of SAID, as the fork goes on."""
    total = 0.0
    for token in SAID:
        total += float(made.process.decoder.logits(fork.hidden).log_softmax(-1)[0, token])
        made.push(fork, [token])
    return total


@pytest.mark.parametrize(
    "spec", ["streaming:0.3", "h2o:0.3", "snapkv:0.3,window=8", "elastic:0.4", "knorm:0.3,evictor=int4", "speckv:0.3,window=8,ahead=4"]
)
def test_a_fork_goes_on_as_the_engine_does(spec: str):
    """With what was gathered while a context was read for several questions; and not as plain decoding does."""
    policy, decoder, text = cache_policy(f"{spec},trigger=after_prompt"), tiny_decoder("qwen2"), "what was said before " * 12
    process = LocalProcess(decoder, ByteTokenizer(), Sarathi(), Settings())
    own = KeepingProcess(decoder, ByteTokenizer(), Sarathi(), Settings(cache=policy))
    with torch.inference_mode():
        made = forks.Forks(process, [policy])
        prompts = [process.tokenizer.render((("user", text + q),)) for q in ("one?", "another?")]
        pages, records = made.read(prompts[0][: len(text)])
        for question, prompt in zip(("one?", "another?"), prompts):
            whole, mine = made.ask(pages, records, prompt[len(text) - forks.TAIL :])
            fork, plain = made.under(policy, whole, mine), made.under(None, whole, mine)
            assert made.held_bytes(fork) < made.held_bytes(whole)
            found = log_p(made, fork)
            ask = Extend(prefix=Prefix(chat(text + question, max_tokens=9)), seed=0, sampling=Sampling(temperature=0), forced=SAID, max_tokens=4)
            assert found == pytest.approx(answers(own, [ask])[0].prefix.log_p, abs=1e-5)
            assert abs(log_p(made, plain) - found) > 1e-3


def test_specs_are_read_as_a_reader_names_them():
    assert long_rows.name_of("plain") == ("all keys", 1.0)
    assert long_rows.name_of("cache=snapkv:0.25") == ("snapkv", 0.25)
    assert long_rows.name_of("cache=out/locret-recall.safetensors:keep=0.1,chunk=512") == ("locret chunk=512", 0.1)
    assert long_rows.name_of("attend=vertical_slash:window=64") == ("attend vertical_slash window=64", None)


def test_differences_are_paired_by_context():
    same = [(f"c{i}", 0.0) for i in range(6)]
    assert long_rows.paired(same) == (0.0, 0.0, 0.0)
    mean, low, high = long_rows.paired([(f"c{i // 4}", -1.0 if i % 4 == 0 else 0.0) for i in range(24)])
    assert (mean, low, high) == (-0.25, -0.25, -0.25)  # every context loses one of four: nothing is uncertain
    mean, low, high = long_rows.paired([(f"c{i // 4}", -1.0 if i < 8 else 0.0) for i in range(24)])
    assert low < mean < high <= 0
