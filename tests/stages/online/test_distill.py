"""On-policy distillation: the loss against a plain loop, what a run brings closer and leaves alone, what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.stages.conftest import TINY
from tests.stages.tiny_data import stop_after
from wukong.errors import UsageError
from wukong.files import fingerprint
from wukong.model.gpt2 import GPT2
from wukong.model.hub import load_policy, save_policy
from wukong.records import Prompt, as_messages, write_records
from wukong.seeds import derived_seed
from wukong.stages.online.distill import Distiller, DistillOptions, run
from wukong.stages.online.rollouts import TokenisedPrompt, roll_out
from wukong.tokenizer import Tokenizer
from wukong.training.metrics import read_json_lines, read_metrics
from wukong.training.session import Session


@pytest.fixture
def world(tmp_path: Path, byte_tokenizer: Tokenizer) -> Path:
    """student/, a wider teacher/ with clear opinions, and prompts.jsonl."""
    for name, config, spread in (("student", TINY, 1.0), ("teacher", replace(TINY, n_embd=48), 3.0)):
        torch.manual_seed(len(name) + config.n_embd)
        model = GPT2(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(spread)
        save_policy(tmp_path / name, model, byte_tokenizer)
    write_records(tmp_path / "prompts.jsonl", [Prompt(messages=as_messages(f"say {n}")) for n in range(20)])
    return tmp_path


def options(world: Path, out: str, **changes) -> DistillOptions:
    given = {"model": str(world / "student"), "teacher": str(world / "teacher"), "out": world / out, "lr": 3e-3}
    given |= {"prompts": [str(world / "prompts.jsonl")], "episodes": 48, "batch_size": 16, "max_new_tokens": 8}
    given |= {"valid_fraction": 0.2, "eval_every": 1, "tensorboard": False, "precision": "float32"}
    return DistillOptions(**(given | changes))


def numbers(out: Path) -> list[dict]:
    return [{k: v for k, v in line.items() if "second" not in k} for line in read_metrics(out)]


def test_the_loss_is_the_mean_kl_at_the_students_own_tokens(world: Path, byte_tokenizer: Tokenizer) -> None:
    """One sequence after another, all logits at once, in a plain loop; and its gradient by autograd."""
    chosen = options(world, "out", temperature=0.7, micro_batch_tokens=40, episodes=16)
    student, teacher = (load_policy(world / name)[0].eval() for name in ("student", "teacher"))
    prompts = [TokenisedPrompt([], byte_tokenizer.encode(text)) for text in ("a", "bcd", "efghij", "klm")]
    with Session(chosen, {"student": student}, 1, "t", lr=chosen.lr) as session:
        distiller = Distiller(session, chosen, student, teacher.requires_grad_(False), byte_tokenizer)
        seed = derived_seed(chosen.seed, "roll", 0)
        episodes = roll_out(student, prompts, byte_tokenizer, chosen, seed, session.compute)
        total, tokens = torch.zeros(()), 0
        for ids, start in zip(episodes.sequences, episodes.prompt_lengths, strict=True):
            ours, theirs = (
                (one.logits(one(torch.tensor([ids])))[0, start - 1 : -1] / 0.7).log_softmax(-1)
                for one in (student, teacher)
            )
            total, tokens = total + (ours.exp() * (ours - theirs)).sum(), tokens + len(ids) - start
        expected = torch.autograd.grad(total / tokens, list(student.parameters()))
        for _ in session.steps():
            metrics = distiller.step(prompts)
    assert metrics["loss"] == pytest.approx(float(total.detach()) / tokens, rel=1e-5)
    assert metrics["loss"] > 0.1
    norm = torch.stack([one.norm() for one in expected]).norm()
    assert metrics["grad_norm"] == pytest.approx(float(norm), rel=1e-4)


def test_a_run_brings_the_student_closer_to_the_teacher_and_leaves_both_alone(world: Path, capsys) -> None:
    before = fingerprint(world / "student"), fingerprint(world / "teacher")
    run(options(world, "out", episodes=16 * 30, eval_every=10))
    assert (fingerprint(world / "student"), fingerprint(world / "teacher")) == before
    losses = [line["loss"] for line in read_metrics(world / "out")]
    assert losses[-1] < 0.7 * losses[0], losses
    valid = [(line["step"], line["valid_loss"]) for line in read_metrics(world / "out") if "valid_loss" in line]
    assert [step for step, _ in valid] == [10, 20, 30]
    assert valid[-1][1] < valid[0][1]
    results = json.loads((world / "out" / "provenance.json").read_text())["results"]
    assert results["first_loss"] == pytest.approx(losses[0])
    assert "nats per token (KL) from the teacher" in capsys.readouterr().err
    assert read_json_lines(world / "out" / "samples.jsonl")
    assert load_policy(world / "out")[0].config == load_policy(world / "student")[0].config


def test_a_stopped_run_equals_an_uninterrupted_one(world: Path, monkeypatch) -> None:
    run(options(world, "once"))
    twice = options(world, "twice")
    stop_after(2, run, twice, monkeypatch)
    run(twice)
    assert fingerprint(twice.out / "model.safetensors") == fingerprint(world / "once" / "model.safetensors")
    assert numbers(twice.out) == numbers(world / "once")
    assert [line["step"] for line in numbers(twice.out)] == [1, 2, 3]


@pytest.mark.parametrize("other", ["vocabulary", "template"])
def test_a_teacher_with_another_tokenizer_is_refused_in_one_line(world: Path, other: str) -> None:
    (world / "stranger").mkdir()
    given = (["aab aab aab"], 258, "plain") if other == "vocabulary" else ([], 257, "alpaca")
    tokenizer = Tokenizer.train(*given)
    save_policy(world / "stranger", GPT2(replace(TINY, vocab_size=tokenizer.vocab_size)), tokenizer)
    chosen = options(world, "out", teacher=str(world / "stranger"))
    with pytest.raises(
        UsageError, match=r"stranger: its tokenizer or chat template is not that of .*student"
    ) as caught:
        run(chosen)
    assert "\n" not in str(caught.value)
    assert not (chosen.out / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 15}, "--episodes 48 is not a multiple of --batch-size 15"),
        ({"max_new_tokens": 64}, "leaves no room"),
        ({"teacher": "nowhere"}, "nowhere"),
    ],
)
def test_impossible_options_are_refused_before_anything_is_written(world: Path, changes: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        run(options(world, "out", **changes))
    assert not (world / "out" / "metrics.jsonl").exists()


def test_without_held_out_prompts_nothing_is_validated(world: Path) -> None:
    run(options(world, "out", valid_fraction=0, episodes=16))
    assert not any("valid_loss" in line for line in read_metrics(world / "out"))
