"""Shards -> a base model, on the `test` preset."""

import json
import math
import shutil
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.reference.losses import log_softmax
from tests.stages.tiny_data import FAST, curves, die_before, made_files, stop_after, tokenised, written
from wukong.data.shards import TokenShards
from wukong.errors import RunError, UsageError
from wukong.files import write_json
from wukong.model.gpt2 import GPT2
from wukong.model.hub import load_policy
from wukong.stages.pretrain import PretrainOptions, run
from wukong.tokenizer import Tokenizer
from wukong.training.metrics import read_json_lines


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return tokenised(tmp_path_factory.mktemp("pretrain"))


BASE = {
    "model": "test",
    "tokens": 12 * 256,
    "batch_tokens": 256,
    "eval_every": 5,
    "eval_tokens": 400,
    "sample_prompts": ["Boil", "Then serve"],
    "lr": 1e-2,
    "warmup_steps": 2,
    "dropout": 0.1,
} | FAST


@pytest.fixture
def options(tokens, tmp_path):
    return lambda **changes: PretrainOptions(**({"data": tokens, "out": tmp_path / "base"} | BASE | changes))


@pytest.fixture(scope="module")
def finished(tokens, tmp_path_factory):
    done = PretrainOptions(data=tokens, out=tmp_path_factory.mktemp("whole") / "base", **BASE)
    run(done)
    return done


def test_the_loss_falls_from_that_of_a_uniform_guess(finished):
    losses = [line["loss"] for line in curves(finished.out)]
    assert len(losses) == 12
    assert losses[0] == pytest.approx(math.log(400), abs=0.1)
    assert losses[-1] < losses[0] - 1


def loss_by_hand(options: PretrainOptions) -> float:
    """The saved model's loss on the held-out text, by a plain loop over windows of the context, each read from its
    own start."""
    model, tokenizer = load_policy(options.out)
    shards = TokenShards.open(options.data / "valid", tokenizer)
    stream = shards.window(0, len(shards)).tolist()
    context, nats = model.config.n_positions, []
    for start in range(0, min(len(stream) - 1, options.eval_tokens) - context + 1, context):
        window = stream[start : start + context + 1]
        with torch.no_grad():
            logits = model.eval().logits(model(torch.tensor([window[:-1]])))[0].tolist()
        nats += [-log_softmax(row)[target] for row, target in zip(logits, window[1:], strict=True)]
    assert len(nats) == options.eval_tokens // context * context
    return float(np.mean(nats))


def test_the_validation_numbers_are_those_of_the_model_that_was_saved(finished):
    model, _ = load_policy(finished.out)
    last = curves(finished.out)[-1]
    assert last["valid_loss"] == pytest.approx(loss_by_hand(finished), abs=1e-4)
    assert last["valid_perplexity"] == pytest.approx(math.exp(last["valid_loss"]), rel=1e-6)
    manifest = json.loads((finished.data / "valid" / "manifest.json").read_text())
    bytes_per_token = manifest["bytes"] / manifest["tokens"]
    assert last["valid_bits_per_byte"] == pytest.approx(last["valid_loss"] / math.log(2) / bytes_per_token, rel=1e-6)
    results = json.loads((finished.out / "provenance.json").read_text())["results"]
    assert results == {"valid_loss": pytest.approx(last["valid_loss"], rel=1e-6), "parameters": model.n_parameters()}


def test_the_samples_are_continuations_at_every_validation(finished):
    samples = read_json_lines(finished.out / "samples.jsonl")
    assert [(s["step"], s["prompt"]) for s in samples] == [(n, p) for n in (5, 10, 12) for p in ("Boil", "Then serve")]
    assert all(isinstance(s["text"], str) for s in samples)


@torch.no_grad()
def test_transformers_loads_the_model_with_the_same_logits(finished):
    transformers = pytest.importorskip("transformers")
    ours, tokenizer = load_policy(finished.out)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(finished.out).eval()
    ids = torch.tensor([tokenizer.encode("Boil rice for 5 minutes.")])
    assert (
        transformers.AutoTokenizer.from_pretrained(finished.out)("Boil rice for 5 minutes.")["input_ids"]
        == ids[0].tolist()
    )
    torch.testing.assert_close(ours.logits(ours.eval()(ids)), theirs(ids).logits, rtol=1e-4, atol=1e-4)


def test_nothing_is_left_of_the_work(finished):
    names = sorted(p.name for p in finished.out.iterdir())
    assert not [n for n in names if n.startswith(".") or n == "checkpoints"]
    assert {"model.safetensors", "config.json", "tokenizer.json", "metrics.jsonl", "provenance.json"} <= set(names)
    assert oct((finished.out / "model.safetensors").stat().st_mode)[-3:] == "644"


def test_a_finished_stage_is_not_done_again_and_other_options_are_refused(finished):
    before = written(finished.out)
    run(finished)
    assert written(finished.out) == before
    with pytest.raises(UsageError, match=r"made with other options \(tokens: 3072 -> 4096\)"):
        run(finished.model_copy(update={"tokens": 4096}))


@pytest.mark.parametrize("stops", [[1], [5, 10], [12]])
def test_a_stopped_run_equals_an_uninterrupted_one(options, finished, monkeypatch, stops):
    for step in stops:
        stop_after(step, run, options(), monkeypatch)
    with pytest.raises(UsageError, match="made with other options"):
        run(options(lr=0.5))
    run(options())
    assert made_files(options().out) == made_files(finished.out)
    assert curves(options().out) == curves(finished.out)
    assert (options().out / "samples.jsonl").read_bytes() == (finished.out / "samples.jsonl").read_bytes()


@pytest.mark.parametrize(
    "file",
    [
        "options.json",
        "metrics.jsonl",
        "checkpoints/step-000004",
        "checkpoints/best",
        ".staged/config.json",
        "model.safetensors",
        "config.json",  # some files are in their place, the others are not
        "provenance.json",
    ],
)
def test_a_run_that_died_anywhere_equals_an_uninterrupted_one(options, finished, file):
    die_before(file, run, options(checkpoint_seconds=0))
    assert not (options().out / "provenance.json").exists()
    run(options(checkpoint_seconds=0))
    assert made_files(options().out) == made_files(finished.out)
    assert curves(options().out) == curves(finished.out)
    assert sorted(p.name for p in options().out.iterdir()) == sorted(p.name for p in finished.out.iterdir())


def test_small_micro_batches_change_nothing_but_rounding(options, tmp_path):
    run(options(dropout=0, tokens=512, out=tmp_path / "whole"))
    run(options(dropout=0, tokens=512, micro_batch_tokens=64))
    whole, parts = curves(tmp_path / "whole"), curves(options().out)
    for name in ("loss", "grad_norm", "valid_loss"):
        assert parts[-1][name] == pytest.approx(whole[-1][name], rel=1e-4)


def test_forced_bfloat16_trains_float32_weights_to_nearly_the_same_loss(options, tmp_path):
    run(options(dropout=0, out=tmp_path / "float32"))
    run(options(dropout=0, precision="bfloat16"))
    weights = load_policy(options().out)[0].parameters()
    assert {p.dtype for p in weights} == {torch.float32}
    found, expected = curves(options().out), curves(tmp_path / "float32")
    assert found != expected, "this was not bfloat16"
    for one, other in zip(found, expected, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-2)
    assert found[-1]["valid_loss"] == pytest.approx(expected[-1]["valid_loss"], rel=1e-2)


def test_training_goes_on_from_a_model(options, finished):
    run(options(model=str(finished.out), lr=1e-6, tokens=256, warmup_steps=0))
    before, after = curves(finished.out)[-1], curves(options().out)[-1]
    assert after["valid_loss"] == pytest.approx(before["valid_loss"], abs=1e-2)


def test_the_best_weights_are_saved_when_training_goes_wrong_later(options):
    run(options(lr_schedule="constant", lr=0.02, tokens=40 * 256, eval_every=2, max_grad_norm=0, dropout=0.5))
    losses = {line["step"]: line["valid_loss"] for line in curves(options().out) if "valid_loss" in line}
    record = json.loads((options().out / "provenance.json").read_text())
    assert record["results"]["valid_loss"] == pytest.approx(min(losses.values()), rel=1e-6)
    assert min(losses.values()) < losses[40] - 1e-3, "or this shows nothing"
    assert loss_by_hand(options()) == pytest.approx(min(losses.values()), abs=1e-4)


def test_dropout_acts_while_training(options, tmp_path):
    run(options(dropout=0, tokens=256, out=tmp_path / "without"))
    run(options(dropout=0.5, tokens=256))
    assert abs(curves(options().out)[0]["loss"] - curves(tmp_path / "without")[0]["loss"]) > 1e-3


# --------------------------------------------------------------------------------------------------- compiled


@pytest.fixture
def slow_machine(monkeypatch, tmp_path):
    """Every run is a long one, and what is measured is remembered in a directory of the test's own."""
    monkeypatch.setattr("wukong.training.compiled.LONG_SECONDS", 0.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "wukong"


@pytest.fixture
def compilations(monkeypatch) -> Callable[..., list[GPT2]]:
    """Replaces torch's compiler by one that makes a model slower by so many seconds a pass, or fails in the first pass;
    returns the models that are compiled from then on."""

    def install(slower: float = 0.0, error: str | None = None) -> list[GPT2]:
        found: list[GPT2] = []

        class Compiled(torch.nn.Module):
            def __init__(self, model: GPT2) -> None:
                super().__init__()
                self.model = model

            def forward(self, ids, **more):
                assert ids.shape in ((4, 64), (4, 65)), "a micro-batch of the run"
                if error:
                    raise RuntimeError(error)
                time.sleep(slower)
                return self.model(ids, **more)

            def __getattr__(self, name):
                return getattr(super().__getattr__("model"), name) if name != "model" else super().__getattr__(name)

        def compile_(model: GPT2, **_: object) -> Compiled:
            found.append(model)
            return Compiled(model)

        monkeypatch.setattr(torch, "compile", compile_)
        return found

    return install


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="torch.compile needs a C++ compiler")
def test_a_compiled_run_learns_what_a_plain_one_learns_and_goes_on_as_it_began(options, tmp_path, monkeypatch, capsys):
    """Without dropout, whose draws differ; the reference is the plain run of the same options."""
    run(options(dropout=0, out=tmp_path / "plain", compile="off"))
    interrupted = options(dropout=0, compile="on")
    stop_after(5, run, interrupted, monkeypatch)
    run(interrupted)
    assert "resuming after step 5" in capsys.readouterr().err
    plain, compiled = (load_policy(out)[0] for out in (tmp_path / "plain", interrupted.out))
    for one, other in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
    losses = [[line["loss"] for line in curves(out)] for out in (tmp_path / "plain", interrupted.out)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_a_long_run_takes_the_faster_one_and_remembers_it(options, tmp_path, slow_machine, compilations, capsys):
    found = compilations(slower=1.0)
    run(options(tokens=256))
    run(options(tokens=256, out=tmp_path / "again"))
    assert len(found) == 1, "once for both runs"
    seconds = json.loads(next(slow_machine.glob("compiled-*.json")).read_text())
    assert seconds["compiled"] > max(1.0, seconds["eager"])
    line = f"a pass takes {seconds['eager']:.3g} s, compiled {seconds['compiled']:.3g} s"
    assert " ".join(capsys.readouterr().err.split()).count(line) == 2
    assert made_files(tmp_path / "again") == made_files(tmp_path / "base")


def test_what_is_measured_leaves_no_gradient_behind(options, tmp_path, slow_machine, compilations):
    run(options(tokens=512, compile="off", out=tmp_path / "plain"))
    assert compilations() == []
    run(options(tokens=512))
    assert made_files(tmp_path / "plain") == made_files(tmp_path / "base")
    assert list(slow_machine.iterdir())


def test_a_short_run_does_not_look(options, compilations):
    found = compilations()
    run(options(tokens=256))
    assert not found


def test_a_sharded_model_is_not_compiled(options, tmp_path, slow_machine, compilations, monkeypatch):
    found = compilations()
    monkeypatch.setattr("wukong.training.compiled.is_sharded", lambda model: True)
    run(options(tokens=256))
    assert not found
    with pytest.raises(UsageError, match="--compile on: a sharded model"):
        run(options(tokens=256, out=tmp_path / "on", compile="on"))


def test_without_a_compiler_auto_says_so_and_on_is_refused(options, tmp_path, slow_machine, compilations, capsys):
    compilations(error="No working C++ compiler found\nand much more")
    run(options(tokens=256))
    said = " ".join(capsys.readouterr().err.split())
    assert "no: torch.compile does not work here (No working C++ compiler found)" in said
    assert not slow_machine.exists()
    with pytest.raises(UsageError, match=r"--compile on: torch.compile does not work here \(No working C"):
        run(options(out=tmp_path / "on", compile="on"))


# --------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": 65}, "--context 65 is longer than the model's 64"),
        ({"batch_tokens": 100}, "--batch-tokens 100 is not a multiple of the context 64"),
        ({"sample_prompts": [""]}, "--sample-prompts '': empty"),
        (
            {"sample_prompts": ["eggs and rice " * 200]},
            "--sample-prompts 'eggs and rice .*no shorter than the model's context",
        ),
        ({"device": "gpu"}, "--device gpu cannot be used here"),
    ],
)
def test_impossible_options_are_refused_and_the_corrected_command_runs(options, changes, message):
    with pytest.raises(UsageError, match=message):
        run(options(**changes))
    run(options(tokens=256))


def test_a_directory_without_tokens_is_refused(options, tmp_path):
    with pytest.raises(UsageError, match="nowhere"):
        run(options(data=tmp_path / "nowhere"))


def test_too_little_text_is_refused(options, tokens, tmp_path):
    tokenizer = Tokenizer.load(tokens)
    from wukong.data.shards import write_shards

    tokenizer.save(tmp_path / "few")
    for side in ("train", "valid"):
        write_shards(tmp_path / "few" / side, ["Boil eggs."], tokenizer)
    with pytest.raises(UsageError, match=r"few: \d training tokens are fewer than one context of 64"):
        run(options(data=tmp_path / "few"))


def test_a_model_with_another_tokenizer_is_refused(options, tmp_path, finished):
    other = tmp_path / "other"
    other.mkdir()
    for name, content in made_files(finished.out).items():
        (other / name).write_bytes(content)
    Tokenizer.train(["Peel them, peel them."] * 9, 265).save(other)
    config = json.loads((other / "config.json").read_text())
    write_json(other / "config.json", config)
    with pytest.raises(UsageError, match="made with another tokenizer than"):
        run(options(model=str(other)))


def test_a_loss_that_is_not_finite_is_one_line_with_advice(options):
    with pytest.raises(RunError, match=r"the (loss|gradient of model) is (nan|inf) at step \d+; .* try a lower --lr"):
        run(options(lr=1e30, max_grad_norm=0, warmup_steps=0))
