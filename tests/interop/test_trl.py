"""There and back with the TRL of today (requirements.txt): its trainers run on our policy, reward model and records,
and we read what it writes. TRL lives in an environment of its own, made here (`environments.environment`)."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import wukong
from tests.environments import environment
from wukong.model.gpt2 import GPT2, GPT2Config
from wukong.model.heads import ScalarModel
from wukong.model.hub import save_policy, save_reward
from wukong.records import Comparison, Preference, Prompt, Ranking, Vote, as_messages
from wukong.stages.online.rloo import RLOOOptions
from wukong.stages.online.rloo import run as rloo
from wukong.tokenizer import Tokenizer

HERE = Path(__file__).parent
SIZES = GPT2Config(vocab_size=290, n_positions=224, n_embd=32, n_layer=2, n_head=2)
QUESTIONS = [f"How long do I boil {n} eggs?" for n in range(15)]
CONVERSATION = [
    {"role": "system", "content": "You are a cook."},
    {"role": "user", "content": "Eggs?"},
    {"role": "assistant", "content": "Boil them."},
    {"role": "user", "content": "How long?"},
]
PROMPTS = [as_messages(prompt) for prompt in (*QUESTIONS, CONVERSATION)]
SAME = {"rtol": 1e-4, "atol": 1e-4}

pytestmark = pytest.mark.interop


def comparisons() -> list[Preference]:
    """A pair for each prompt, a ranking with a tie in it (two pairs), and a tie (none)."""
    pairs = [Comparison(prompt=p, chosen=f"{n} minutes.", rejected=f"no {n}") for n, p in enumerate(PROMPTS)]
    ranking = Ranking(prompt=PROMPTS[0], responses=["ten", "five", "two"], groups=[[1], [0, 2]])
    tie = Comparison(prompt=PROMPTS[1], chosen="one", rejected="1", tie=True)
    return [*pairs, ranking, tie]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The directory in which TRL has done all that trl_side.py does."""
    requirements = [line for line in (HERE / "requirements.txt").read_text().splitlines() if line[:1] != "#"]
    python = environment("trl", requirements, shared=True) / "python"
    directory = tmp_path_factory.mktemp("trl")
    tokenizer = Tokenizer.train([f"Boil {n} eggs for {n % 9} minutes. How long? yes no" for n in range(50)], 290)
    torch.manual_seed(0)
    save_policy(directory / "policy", GPT2(SIZES), tokenizer)
    reward_model = ScalarModel(GPT2(SIZES))
    with torch.no_grad():
        for parameter in reward_model.parameters():  # the head's bias too, which has to go through ln_f
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    save_reward(directory / "reward", reward_model, tokenizer)
    for name, records in {
        "prompts": [Prompt(messages=p) for p in PROMPTS],
        "pairs": comparisons(),
        "votes": [Vote(prompt=p, response=f"{n} minutes.", vote=1 if n % 2 else -1) for n, p in enumerate(PROMPTS)],
    }.items():
        rows = wukong.as_trl(records)
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = {"PYTHONPATH", "WUKONG_STRICT_SKIPS"}
    surroundings = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [python, HERE / "trl_side.py", directory], env=surroundings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return directory


def told(directory: Path, name: str):
    return json.loads((directory / f"{name}.json").read_text())


def first_pairs(directory: Path) -> list[tuple]:
    rows = [json.loads(line) for line in (directory / "pairs.jsonl").read_text().splitlines()]
    return [(row["prompt"], row["chosen"][0]["content"]) for row in rows[:6]]


@pytest.mark.parametrize("name", ["rloo", "grpo"])
def test_trls_trainers_see_the_scores_that_our_reward_model_gives(trained, name):
    reward = wukong.load_reward(trained / "reward", precision="float32")
    found = told(trained, name)
    ours = [np.mean(reward.score([(prompt, text) for prompt, text in batch])) for batch in found["seen"]]
    assert len(ours) == len(found["means"]) == 4
    np.testing.assert_allclose(ours, found["means"], atol=1e-4)
    assert np.std(ours) > 1e-3, "scores that are all alike would show nothing"


@pytest.mark.parametrize("name", ["rloo", "grpo"])
def test_a_policy_that_trl_trained_is_ours_to_use(trained, name):
    before, after = (wukong.load_policy(trained / one, precision="float32") for one in ("policy", name))
    assert after.tokenizer.fingerprint == before.tokenizer.fingerprint
    theirs = told(trained, f"{name}-logprobs")
    ours = after.logprobs(first_pairs(trained))
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, torch.tensor(other), **SAME)
    moved = max(float((a - b).abs().max()) for a, b in zip(ours, before.logprobs(first_pairs(trained)), strict=True))
    assert moved > 0.01, "TRL has trained it"


def test_a_reward_model_that_trl_trained_scores_the_same_here(trained):
    ours = wukong.load_reward(trained / "trl-reward", precision="float32").score(first_pairs(trained))
    np.testing.assert_allclose(ours, told(trained, "trl-reward"), atol=1e-4)
    assert np.std(ours) > 1e-3


def test_our_rloo_goes_on_from_trls_policy_and_reward_model(trained, tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join(QUESTIONS))
    options = {"model": str(trained / "rloo"), "reward_model": str(trained / "trl-reward"), "missing_eos_score": None}
    options |= {"prompts": [str(tmp_path / "prompts.txt")], "episodes": 16, "batch_size": 16, "max_new_tokens": 8}
    rloo(RLOOOptions(out=tmp_path / "out", tensorboard=False, precision="float32", **options))
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_trl_learns_from_our_pairs_and_votes(trained, name):
    before, after = (
        wukong.load_policy(trained / one, precision="float32").logprobs(first_pairs(trained))
        for one in ("policy", name)
    )
    assert max(float((a - b).abs().max()) for a, b in zip(before, after, strict=True)) > 1e-4


def decided(records) -> set[tuple]:
    return {(tuple((m.role, m.content) for m in r.prompt), r.chosen, r.rejected) for r in records}


@pytest.mark.parametrize("name", ["pairs", "implicit", "explicit"])
def test_pairs_come_back_from_trls_formats(trained, name):
    pairs = [record for record in comparisons() if isinstance(record, Comparison) and not record.tie]
    pairs += [Comparison(prompt=PROMPTS[0], chosen="five", rejected=other) for other in ("ten", "two")]
    read = wukong.read_comparisons(trained / f"{name}.jsonl")
    assert len(read) == len(pairs) == 18
    assert decided(read) == decided(pairs)


def test_votes_come_back(trained):
    votes = wukong.read_comparisons(trained / "votes.jsonl")
    assert [(v.response, v.vote) for v in votes] == [(f"{n} minutes.", 1 if n % 2 else -1) for n in range(16)]
    assert [v.prompt for v in votes] == PROMPTS


def test_conversations_have_the_same_tokens_in_both(trained):
    tokenizer = wukong.load_policy(trained / "policy").tokenizer
    asked, whole = told(trained, "tokens")
    pairs = [record for record in comparisons() if isinstance(record, Comparison) and not record.tie]
    assert asked[: len(pairs)] == [tokenizer.prompt_ids(pair.prompt) for pair in pairs]
    ours = [tokenizer.prompt_ids(pair.prompt) + tokenizer.response_ids(pair.chosen) for pair in pairs]
    assert whole[: len(pairs)] == ours
