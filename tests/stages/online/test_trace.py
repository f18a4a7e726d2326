"""Traces of training: they change nothing, survive a stop, and record what the models say."""

import json
from pathlib import Path

import pytest
import torch

from tests.stages.tiny_data import stop_after
from tests.traced_runs import TRACE, options_of, run, world
from wukong.errors import DataError
from wukong.files import fingerprint
from wukong.model.gpt2 import GPT2
from wukong.model.hub import load_policy, load_reward
from wukong.report.traces import TracedResponse, read_trace
from wukong.stages.online.trace import traced_steps
from wukong.training.metrics import read_metrics


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world(tmp_path_factory.mktemp("traced"))


@pytest.fixture(scope="module")
def traced(root: Path) -> Path:
    """A PPO run with a trace."""
    return run(options_of(root, "ppo", "traced", **TRACE))


def numbers(out: Path) -> list[dict]:
    return [{k: v for k, v in line.items() if "second" not in k} for line in read_metrics(out)]


@pytest.mark.parametrize(
    "name", ["ppo", "bestofn", *(pytest.param(name, marks=pytest.mark.slow) for name in ("shared", "running", "grpo"))]
)
def test_a_trace_changes_neither_weights_nor_metrics(root: Path, name: str) -> None:
    without = run(options_of(root, name, f"{name}-without", episodes=32))
    traced = run(options_of(root, name, f"{name}-with", episodes=32, **TRACE))
    assert fingerprint(traced / "model.safetensors") == fingerprint(without / "model.safetensors")
    assert numbers(traced) == numbers(without)
    assert not (without / "trace.jsonl").exists()
    assert [one.step for one in read_trace(traced)] == [1, 2]


def test_a_resumed_run_has_the_trace_of_an_uninterrupted_one(root: Path, traced: Path, monkeypatch) -> None:
    options = options_of(root, "ppo", "twice", **TRACE)
    stop_after(2, run, options, monkeypatch)
    assert [one.step for one in read_trace(options.out)] == [1, 2]
    with (options.out / "trace.jsonl").open("a") as file:
        file.write('{"step": 3, "of": "a process that was killed after its last checkpoint"}\n{"step": 4, "cut of')
    run(options)
    assert (options.out / "trace.jsonl").read_bytes() == (traced / "trace.jsonl").read_bytes()


def test_the_traced_prompts_are_chosen_by_options(root: Path, traced: Path) -> None:
    for one in read_trace(traced):
        assert [(r.pinned, r.row) for r in one.responses] == [(True, 0), (False, 0), (False, 1)]
        assert one.responses[0].messages[0].content == "say: 好"
        assert len(one.batch.scores) == 16
        assert [r.score for r in one.responses[1:]] == one.batch.scores[:2]
    groups = run(options_of(root, "rloo", "groups", trace=1, episodes=16))
    (only,) = read_trace(groups)
    assert [r.pinned for r in only.responses] == [True] * 4 + [False] * 4, "all responses to a prompt"
    assert only.responses[0].messages[0].content == "say 0", "the run's first prompt"
    best = read_trace(run(options_of(root, "bestofn", "best", trace=4, episodes=16)))[0].responses
    assert [sum(r.trained for r in best[i : i + 4]) for i in range(0, 20, 4)] == [0, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        ({}, set()),
        ({"trace": 1}, {0, 11, 22, 33, 44, 55, 66, 77, 88, 99}),
        ({"trace_prompts": ["a"], "trace_every": 40}, {0, 40, 80, 99}),
        ({"trace": 1, "episodes": 48}, {0, 1, 2}),
    ],
)
def test_which_iterations_are_traced(root: Path, given: dict, steps: set[int]) -> None:
    assert traced_steps(options_of(root, "ppo", "-", **({"episodes": 1600} | given))) == steps


def logprobs_of(model: GPT2, prompt: list[int], response: list[int]) -> list[float]:
    with torch.no_grad():
        logits = model.logits(model(torch.tensor([prompt + response])))[0]
    found = logits.log_softmax(-1)
    return [float(found[len(prompt) + t - 1, token]) for t, token in enumerate(response)]


def test_the_models_say_what_is_recorded(root: Path, traced: Path) -> None:
    """The first iteration starts from the SFT model and the reward model as value model; the last one ends at the
    result."""
    sft, tokenizer = load_policy(root / "sft")
    policy, _ = load_policy(traced)
    reward_model, _ = load_reward(root / "reward")
    ids = {tokenizer.token_texts([i])[0]: i for i in range(257)}
    first, *_, last = read_trace(traced)
    moved = 0.0
    for one, old, new in ((first, sft, None), (last, None, policy)):
        for response in one.responses:
            prompt, answer = tokenizer.prompt_ids(response.messages), [ids[text] for text in response.tokens]
            reference = logprobs_of(sft, prompt, answer)
            assert response.reference_logprobs == pytest.approx(reference, abs=1e-4)
            if old is not None:
                assert response.logprobs == pytest.approx(logprobs_of(old, prompt, answer), abs=1e-4)
                with torch.no_grad():
                    values = reward_model.token_scores(torch.tensor([prompt + answer]))[0]
                assert response.values == pytest.approx(values[len(prompt) - 1 : -1].tolist(), abs=1e-4)
                scored = torch.tensor([prompt + answer[: response.scored_tokens]])
                with torch.no_grad():
                    reward = float(reward_model(scored, torch.tensor([scored.shape[1]])))
                assert response.reward == pytest.approx(reward, abs=1e-4)
            if new is not None:
                assert response.new_logprobs == pytest.approx(logprobs_of(new, prompt, answer), abs=1e-4)
                moved = max(moved, *(abs(a - b) for a, b in zip(response.new_logprobs, reference, strict=True)))
    assert moved > 0.01, "the test can fail"


def test_tokens_are_texts_that_add_up(traced: Path) -> None:
    for one in read_trace(traced):
        for response in one.responses:
            tokens = response.tokens[:-1] if response.ended else response.tokens
            assert response.tokens[-1] == "<|endoftext|>" or not response.ended
            if not any("\\x" in token for token in tokens):
                assert "".join(tokens) == response.text


def test_a_pinned_prompt_has_the_same_random_numbers_at_each_iteration(root: Path) -> None:
    """With no learning, the same answer each time."""
    still = run(options_of(root, "rloo", "still", lr=1e-12, **TRACE))
    texts = [[r.text for r in one.responses if r.pinned] for one in read_trace(still)]
    assert texts[0] == texts[1] == texts[2]
    assert len(set(texts[0])) == 4


def test_a_response_that_never_ended_has_another_score_than_reward(root: Path) -> None:
    responses = [r for one in read_trace(run(options_of(root, "shared", "cut", trace=16))) for r in one.responses]
    cut = [r for r in responses if not r.ended]
    ended = [r for r in responses if r.ended]
    assert cut
    assert ended
    assert all(r.score == -1.0 != r.reward for r in cut)
    assert all(r.score == r.reward for r in ended)


def test_a_damaged_trace_is_named(traced: Path, tmp_path: Path) -> None:
    line = json.loads((traced / "trace.jsonl").read_text().splitlines()[0])
    line["responses"][0]["kl"].pop()
    (tmp_path / "trace.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(DataError, match=r"kl has .* entries for .* tokens"):
        read_trace(tmp_path)
    assert read_trace(tmp_path / "nothing") == []
    assert TracedResponse.model_fields.keys() >= {"ratios", "clipped", "policy_losses", "value_losses"}
