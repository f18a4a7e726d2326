"""An answer as tokens: log-probs, KL to the recorded reference, and what it would score if it ended earlier."""

import math
from pathlib import Path

import pytest
import torch

import wukong
from tests.traced_runs import TINY, options_of, run, world
from wukong.errors import UsageError
from wukong.inspection import load_inspector, recorded_companions, token_table
from wukong.model.gpt2 import GPT2
from wukong.model.heads import ScalarModel
from wukong.model.hub import load_policy, load_reward, save_policy, save_reward
from wukong.scoring import prefix_scores, scores_of
from wukong.tokenizer import Tokenizer
from wukong.training.compute import compute_for


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sft/, reward/ and policy/, which PPO made of them."""
    root = world(tmp_path_factory.mktemp("inspected"))
    run(options_of(root, "ppo", "policy", episodes=32))
    return root


def loop(model: GPT2, prompt: list[int], answer: list[int], temperature: float) -> list[float]:
    found = []
    for t, token in enumerate(answer):
        with torch.no_grad():
            logits = model.logits(model(torch.tensor([prompt + answer[:t]])))[0, -1]
        found.append(float((logits / temperature).log_softmax(-1)[token]))
    return found


@pytest.mark.parametrize(("finished", "temperature"), [(True, 1.0), (False, 0.5)])
def test_an_answer_is_taken_apart_with_the_models_of_its_record(root: Path, finished: bool, temperature: float) -> None:
    found = wukong.load_inspector(root / "policy", device="cpu")(
        "say 1", "Hi, 好", finished=finished, temperature=temperature
    )
    (policy, tokenizer), (sft, _), (reward, _) = (
        load_policy(root / "policy"), load_policy(root / "sft"), load_reward(root / "reward")
    )  # fmt: skip
    prompt, text = tokenizer.prompt_ids("say 1"), tokenizer.encode("Hi, 好")
    answer = text + [tokenizer.eos_id] * finished
    ours, theirs = (loop(model, prompt, answer, temperature) for model in (policy, sft))
    assert found.logprobs == pytest.approx(ours, abs=1e-4)
    assert found.reference_logprobs == pytest.approx(theirs, abs=1e-4)
    assert found.kl == pytest.approx([a - b for a, b in zip(ours, theirs, strict=True)], abs=1e-4)
    assert max(map(abs, found.kl)) > 1e-3
    with torch.no_grad():
        scores = [
            float(reward(torch.tensor([prompt + text[: t + 1]]), torch.tensor([len(prompt) + t + 1])))
            for t in range(len(text))
        ]
    assert found.end_scores == pytest.approx(scores + scores[-1:] * finished, abs=1e-4)
    assert found.tokens == ["H", "i", ",", " ", "\\xe5", "\\xa5", "\\xbd"] + ["<|endoftext|>"] * finished
    assert (Path(found.reference).name, Path(found.reward_model).name) == ("sft", "reward")


def test_a_model_that_no_policy_stage_made_has_log_probs_only(root: Path) -> None:
    assert recorded_companions(root / "sft") == recorded_companions("gpt2") == ("", "")
    found = load_inspector(root / "sft")("say 1", "Hi")
    assert (found.reference_logprobs, found.kl, found.end_scores) == (None, None, None)
    given = load_inspector(root / "sft", str(root / "sft"), str(root / "reward"))("say 1", "Hi")
    assert given.kl == pytest.approx([0, 0, 0], abs=1e-6)
    assert given.end_scores is not None
    assert load_inspector(root / "policy", "", "")("say 1", "Hi").kl is None
    raw = load_inspector(root / "sft", raw=True)("say 1", "Hi")
    assert len(raw.logprobs) == 3


def test_what_cannot_be_taken_apart_is_refused_in_one_line(root: Path, tmp_path: Path) -> None:
    inspect = load_inspector(root / "policy")
    with pytest.raises(UsageError, match="has no token"):
        inspect("say 1", "", finished=False)
    with pytest.raises(UsageError, match="fills the model's context of 64 tokens"):
        inspect("say 1", "x" * 80)
    (tmp_path / "other").mkdir()
    save_policy(tmp_path / "other", GPT2(TINY), Tokenizer.train([], 257, "alpaca"))
    with pytest.raises(UsageError, match="chat template is not the policy's"):
        load_inspector(root / "policy", str(tmp_path / "other"))


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_prefixes_score_as_whole_answers_do(pooling: str) -> None:
    torch.manual_seed(0)
    model, compute = ScalarModel(GPT2(TINY), "mlp", pooling), compute_for("float32", "cpu")
    ids = list(range(40, 60))
    found = prefix_scores(model, ids, 12, compute, 64)
    assert found == pytest.approx(scores_of(model, [ids[:n] for n in range(12, 21)], compute, 1000), abs=1e-5)
    assert len(set(found)) == 9


def test_the_table_of_the_terminal_shows_white_space_and_no_control_characters(root: Path) -> None:
    found = load_inspector(root / "policy")("say 1", "a\n\x1b")
    table = token_table(found)
    cells = [str(cell) for cell in table.columns[0].cells]
    assert cells == ["'a'", "'\\n'", "'\\x1b'", "'<|endoftext|>'"]
    assert [str(c.header) for c in table.columns][1:] == ["log π", "log π_ref", "KL", "score if it ended here"]
    assert math.isclose(float(str(next(iter(table.columns[3].cells)))), found.kl[0], abs_tol=1e-3)


def test_a_reward_model_with_a_shorter_context_says_nothing(root: Path, tmp_path: Path) -> None:
    (tmp_path / "short").mkdir()
    config = TINY.__class__(vocab_size=257, n_positions=8, n_embd=16, n_layer=1, n_head=2)
    save_reward(tmp_path / "short", ScalarModel(GPT2(config)), load_policy(root / "sft")[1])
    assert load_inspector(root / "policy", None, str(tmp_path / "short"))("say 1", "Hello").end_scores is None
