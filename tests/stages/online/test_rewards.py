"""Rewards: how they are named, combined, weighted and told apart in the log."""

from pathlib import Path

import numpy as np
import pytest
import torch

from wukong.data.answers import answers_ids
from wukong.errors import UsageError
from wukong.files import read_json
from wukong.model.heads import ScalarModel
from wukong.model.hub import load_reward, save_reward
from wukong.records import Prompt, Ranking, Response, as_messages, prompt_id, read_records, write_records
from wukong.scoring import scores_of
from wukong.stages import label
from wukong.stages.label import LabelOptions
from wukong.stages.online import rloo
from wukong.stages.online.rewards import RewardInput, ScoringOptions, combined, load_rewards, model_inputs, parsed
from wukong.stages.online.rloo import RLOOOptions
from wukong.tokenizer import Tokenizer
from wukong.training.compute import Compute
from wukong.training.metrics import read_metrics

CPU = Compute(torch.device("cpu"), torch.float32)


def letters(prompts, texts):
    return np.array([float(len(text)) for text in texts])


def asked(prompts, texts):
    return torch.tensor([float(len(prompt[-1].content)) for prompt in prompts])


def answers(tokenizer: Tokenizer) -> RewardInput:
    prompts = [as_messages("Hi"), as_messages("Hello")]
    texts = ["abc", "a"]
    read = answers_ids(tokenizer, list(zip(prompts, texts, strict=True)), 64)
    asked = [Prompt(messages=messages) for messages in prompts]
    return RewardInput(asked, texts, [ids for ids in read if ids], [4, 2])


@pytest.fixture(scope="module")
def models(tiny_models: Path, byte_tokenizer: Tokenizer, tmp_path_factory) -> list[str]:
    """Three reward models, two of which have the same name."""
    root = tmp_path_factory.mktemp("rewards")
    for seed, name in enumerate(("a/reward", "b/reward", "third")):
        torch.manual_seed(10 + seed)
        (root / name).mkdir(parents=True)
        trunk = load_reward(tiny_models / "reward")[0].trunk
        save_reward(root / name, ScalarModel(trunk), byte_tokenizer)
    return [str(root / name) for name in ("a/reward", "b/reward", "third")]


def scores(directory: str, given: RewardInput) -> np.ndarray:
    return np.array(scores_of(load_reward(directory)[0], given.sequences, CPU, 4096))


def load(tokenizer: Tokenizer, **options):
    return load_rewards(ScoringOptions(**options), tokenizer, CPU, 4096)


def test_terms_are_a_weight_and_a_name() -> None:
    assert parsed("lexicon") == (1.0, "lexicon")
    assert parsed("0.5*lexicon") == (0.5, "lexicon")
    assert parsed("-1e-1 * my:score") == (-0.1, "my:score")
    for wrong in ("half*lexicon", "*lexicon", "2*", "nan*lexicon", "inf*lexicon"):
        with pytest.raises(UsageError, match="write WEIGHT"):
            parsed(wrong)


def test_one_reward_model_scores_as_it_always_did(models, byte_tokenizer) -> None:
    given = answers(byte_tokenizer)
    scored = load(byte_tokenizer, reward_model=models[0])(given)
    assert scored.total.tolist() == scores(models[0], given).tolist()
    assert scored.means == {}  # the sum says it already


def test_ensembles_by_hand() -> None:
    # Two models, two responses: (1, 3) and (5, 3); deviations 2 and 0.
    both = np.array([[1.0, 3.0], [5.0, 3.0]])
    assert combined(both, "mean", 0.5).tolist() == [3.0, 3.0]
    assert combined(both, "min", 0.5).tolist() == [1.0, 3.0]
    assert combined(both, "mean-std", 0.5).tolist() == [2.0, 3.0]


@pytest.mark.parametrize("by", ["mean", "min", "mean-std"])
def test_an_ensemble_of_reward_models(models, byte_tokenizer, by) -> None:
    given = answers(byte_tokenizer)
    found = load(byte_tokenizer, reward_model=models[0], ensemble=models[1:], ensemble_by=by, uncertainty_coef=2)(given)
    single = np.array([scores(model, given) for model in models])
    expected = {"mean": single.mean(0), "min": single.min(0), "mean-std": single.mean(0) - 2 * single.std(0)}[by]
    assert found.total == pytest.approx(expected)
    assert found.means["reward_of.third"] == pytest.approx(single[2].mean())
    assert found.means[f"reward_of.{models[0]}"] == pytest.approx(single[0].mean())  # two are called "reward"
    assert found.means["ensemble_std"] == pytest.approx(single.std(0).mean())


def test_a_weighted_sum_with_a_length_penalty(models, byte_tokenizer) -> None:
    given = answers(byte_tokenizer)
    rewards = [f"0.5*{__name__}:letters", f"{__name__}:asked", f"-2*{models[2]}"]
    found = load(byte_tokenizer, reward_model=models[0], rewards=rewards, length_penalty=0.1)(given)
    third = scores(models[2], given)
    expected = scores(models[0], given) + 0.5 * np.array([3, 1]) + np.array([2, 5]) - 2 * third - 0.1 * np.array([4, 2])
    assert found.total == pytest.approx(expected)
    assert found.means[f"reward_of.{__name__}:letters"] == 2.0  # without its weight
    assert found.means[f"reward_of.{__name__}:asked"] == 3.5
    assert found.means["reward_of.third"] == pytest.approx(third.mean())
    assert found.means["length_penalty"] == pytest.approx(0.3)


def test_the_kitchens_rubric_and_the_lexicon_are_rewards(byte_tokenizer) -> None:
    prompts, texts = (
        [Prompt(messages=as_messages("How to make pizza"))] * 2,
        ["a horrible, awful idea", "a wonderful, happy idea"],
    )
    given = RewardInput(prompts, texts, [[1], [1]], [1, 1])
    assert np.diff(load(byte_tokenizer, rewards=["lexicon"])(given).total) > 0.5
    assert load(byte_tokenizer, rewards=["rubric", "lexicon"])(given).means.keys() == {
        "reward_of.rubric",
        "reward_of.lexicon",
    }


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "there is no reward"),
        ({"ensemble": ["x"]}, "--ensemble adds to"),
        ({"rewards": ["nobody"]}, "unknown judge 'nobody'"),
        ({"rewards": ["lexicon", "0.5*lexicon"]}, "lexicon is named twice"),
        ({"rewards": ["no.such.module:f"]}, "cannot be loaded"),
        ({"rewards": ["math:pi"]}, "is float, expected a function"),
        ({"rewards": ["x*lexicon"]}, "write WEIGHT"),
        ({"rewards": ["1e400*lexicon"]}, "the weight is not a finite number"),
    ],
)
def test_rewards_that_cannot_be_had_are_refused_with_one_line(byte_tokenizer, options, words) -> None:
    with pytest.raises(UsageError, match=words):
        load(byte_tokenizer, **options)


def test_a_reward_model_with_another_tokenizer_is_refused(tiny_models, models, tmp_path) -> None:
    other = Tokenizer.train([], 257, "alpaca")
    with pytest.raises(UsageError, match="its tokenizer or chat template is not the policy's"):
        load(other, rewards=[models[0]])


def test_a_result_depends_on_every_reward_model_it_was_made_with(models) -> None:
    options = ScoringOptions(reward_model=models[0], ensemble=[models[1]], rewards=["lexicon", f"0.5*{models[2]}"])
    assert model_inputs(options) == models


def test_a_module_in_the_working_directory_is_found(tmp_path, monkeypatch, byte_tokenizer) -> None:
    (tmp_path / "taste_of_mine.py").write_text("def score(prompts, texts):\n    return [1 for _ in texts]\n")
    (tmp_path / "broken_taste.py").write_text("def score(:\n")
    monkeypatch.chdir(tmp_path)
    assert load(byte_tokenizer, rewards=["taste_of_mine:score"])(answers(byte_tokenizer)).total.tolist() == [1.0, 1.0]
    with pytest.raises(UsageError, match="importing broken_taste raised SyntaxError"):
        load(byte_tokenizer, rewards=["broken_taste:score"])


def test_a_run_logs_every_term_by_itself(models, tiny_models, tmp_path) -> None:
    write_records(tmp_path / "p.jsonl", [Prompt(messages=as_messages(f"say {n}")) for n in range(4)])
    options = RLOOOptions(
        out=tmp_path / "out", model=str(tiny_models / "sft"), prompts=[str(tmp_path / "p.jsonl")], episodes=8,
        batch_size=8, max_new_tokens=4, reward_model=models[0], ensemble=[models[2]],
        rewards=[f"0.1*{__name__}:letters"], length_penalty=0.01, missing_eos_score=None, precision="float32",
        tensorboard=False,
    )  # fmt: skip
    rloo.run(options)
    line = read_metrics(options.out)[0]
    names = [f"reward_of.{name}" for name in ("reward", "third", f"{__name__}:letters")]
    total = (line[names[0]] + line[names[1]]) / 2 + 0.1 * line[names[2]] - line["length_penalty"]
    assert line["reward_model_score"] == pytest.approx(total, rel=1e-5)
    assert line["ensemble_std"] > 0
    assert list(read_json(options.out / "provenance.json")["inputs"])[1:3] == [models[0], models[2]]


def test_a_reward_model_labels_responses(models, tmp_path) -> None:
    messages = as_messages("Hi")
    texts = ["one", "two words", "three whole words"]
    records = [
        Response(id=str(i), prompt_id=prompt_id(messages), messages=messages, text=text, model="m")
        for i, text in enumerate(texts)
    ]
    write_records(tmp_path / "r.jsonl", records)
    label.run(LabelOptions(out=tmp_path / "c.jsonl", responses=str(tmp_path / "r.jsonl"), judge=models[0]))
    model, tokenizer = load_reward(models[0])
    expected = scores_of(model, [i for i in answers_ids(tokenizer, [(messages, t) for t in texts], 64) if i], CPU, 4096)
    order = [group[0] for group in read_records(tmp_path / "c.jsonl", Ranking)[0].groups]
    assert order == sorted(range(3), key=lambda i: -expected[i])
