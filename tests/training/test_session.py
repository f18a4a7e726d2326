"""Optimiser, schedule, accumulation, clipping, errors and metrics of a training run."""

import json
import math

import numpy as np
import pytest
import torch

from tests.training.toy_run import ToyOptions, make_modules, toy_run
from wukong.errors import RunError
from wukong.model.gpt2 import GPT2, GPT2Config
from wukong.seeds import derived_seed, permutation
from wukong.training.metrics import MetricsLog, read_json_lines, read_metrics
from wukong.training.session import Session, TrainOptions, lr_factor, publish


def options_for(tmp_path, **changes) -> TrainOptions:
    base = {"tensorboard": False, "precision": "float32", "checkpoint_seconds": 1e9}
    return TrainOptions(out=tmp_path, **(base | changes))


# ------------------------------------------------------------------------------------------------- learning rate


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # Ten steps, warm-up of two: 1/2, 1, and then progress 0/8 ... 7/8.
        ({"lr_schedule": "linear"}, [0.5, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        ({"lr_schedule": "constant"}, [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        # (1 + cos(pi p))/2 at p = 0, 1/8 ...: cos(pi/8) = 0.923880, cos(pi/4) = 0.707107, cos(3 pi/8) = 0.382683.
        (
            {"lr_schedule": "cosine"},
            [0.5, 1, 1, 0.961940, 0.853553, 0.691342, 0.5, 0.308658, 0.146447, 0.038060],
        ),
        # Towards a tenth: 0.1 + 0.9 x linear. The warm-up still begins near 0.
        (
            {"lr_schedule": "linear", "min_lr_ratio": 0.1},
            [0.5, 1, 1, 0.8875, 0.775, 0.6625, 0.55, 0.4375, 0.325, 0.2125],
        ),
        ({"lr_schedule": "linear", "warmup_steps": 0}, [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
    ],
)  # fmt: skip
def test_the_learning_rate_by_hand(tmp_path, changes, expected):
    options = options_for(tmp_path, **({"warmup_steps": 2} | changes))
    assert [lr_factor(step, 10, options) for step in range(10)] == pytest.approx(expected, abs=1e-6)


def test_each_step_runs_at_its_learning_rate(tmp_path):
    model = torch.nn.Linear(1, 1)
    options = options_for(tmp_path, lr=0.2, lr_schedule="linear", warmup_steps=2, log_every=1)
    used = []
    with Session(options, {"model": model}, 4, "test", lr=options.lr or 1e-3) as session:
        for _ in session.steps():
            used.append([group["lr"] for group in session.optimizer.param_groups])
            session.backward(model.weight.sum())
            session.optimizer_step()
    assert used == [[0.1, 0.1], [0.2, 0.2], [0.2, 0.2], [0.1, 0.1]]
    assert [line["lr"] for line in read_metrics(tmp_path)] == [0.1, 0.2, 0.2, 0.1]


# ----------------------------------------------------------------------------------------------------- optimiser


def test_only_matrices_decay(tmp_path):
    model = GPT2(GPT2Config(vocab_size=30, n_positions=8, n_embd=8, n_layer=1, n_head=1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    options = options_for(tmp_path, weight_decay=0.5, lr_schedule="constant")
    with Session(options, {"m": model}, 1, "t", lr=0.1) as s:
        for _ in s.steps():
            s.backward(0.0 * sum(p.sum() for p in model.parameters()))  # no gradient: decay alone moves anything
            s.optimizer_step()
    decayed = {name for name, p in model.named_parameters() if torch.allclose(p, torch.tensor(0.95))}  # 1 - 0.1 x 0.5
    kept = {name for name, p in model.named_parameters() if torch.equal(p, torch.ones_like(p))}
    assert kept == {name for name, _ in model.named_parameters() if name.endswith("bias") or "ln_" in name}
    assert decayed | kept == {name for name, _ in model.named_parameters()}
    assert {"wte.weight", "wpe.weight", "h.0.attn.c_attn.weight", "h.0.mlp.c_proj.weight"} <= decayed


def test_an_adamw_step_by_hand(tmp_path):
    """Loshchilov and Hutter 2019, two steps on one weight and one bias, with the options' betas, eps and decay."""
    lr, decay, beta1, beta2, eps = 0.1, 0.5, 0.8, 0.9, 0.01
    options = options_for(
        tmp_path, lr=lr, weight_decay=decay, betas=(beta1, beta2), adam_eps=eps, lr_schedule="constant", max_grad_norm=0
    )
    model = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(model.weight, 2.0)
    torch.nn.init.constant_(model.bias, 3.0)
    gradients = [(0.5, -1.0), (-0.25, 4.0)]
    with Session(options, {"model": model}, 2, "test", lr=options.lr or 1e-3) as session:
        for step in session.steps():
            to_weight, to_bias = gradients[step]
            session.backward(to_weight * model.weight.sum() + to_bias * model.bias.sum())
            session.optimizer_step()
    for found, value, column, its_decay in ((model.weight, 2.0, 0, decay), (model.bias, 3.0, 1, 0.0)):
        m = v = 0.0
        for t in (1, 2):
            g = gradients[t - 1][column]
            m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
            value -= lr * its_decay * value
            value -= lr * (m / (1 - beta1**t)) / (math.sqrt(v / (1 - beta2**t)) + eps)
        assert found.item() == pytest.approx(value, abs=1e-5)


def gradients_of(tmp_path, monkeypatch, split, *, max_grad_norm=0.0, scale=1.0):
    """The gradients that reach AdamW after one step over eight records in parts of `split`, and the norms."""
    modules, seen = make_modules(ToyOptions(out=tmp_path, dropout=0.0)), []
    data = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    with Session(
        options_for(tmp_path / str(split), max_grad_norm=max_grad_norm), modules, 1, "test", lr=1e-3
    ) as session:
        parameters = [p for module in modules.values() for p in module.parameters()]
        session.optimizer.register_step_pre_hook(lambda *_: seen.extend(p.grad.clone() for p in parameters))
        for _ in session.steps():
            for part in data.split(split):
                session.backward(scale * modules["head"](modules["body"](part)).square().sum() / len(data))
            norms = session.optimizer_step()
        assert all(p.grad is None for p in parameters), "gradients must not leak into the next step"
    sizes = [len(list(module.parameters())) for module in modules.values()]
    return {"body": seen[: sizes[0]], "head": seen[sizes[0] :]}, norms


def test_accumulated_gradients_equal_those_of_one_large_batch(tmp_path, monkeypatch):
    whole, _ = gradients_of(tmp_path, monkeypatch, 8)
    for split in (1, 3, 4):
        parts, _ = gradients_of(tmp_path, monkeypatch, split)
        for name in whole:
            for found, expected in zip(parts[name], whole[name], strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
                assert expected.abs().max() > 1e-3


def norm(tensors) -> float:
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors))


def test_each_models_gradient_is_scaled_down_to_the_limit_and_never_up(tmp_path, monkeypatch):
    plain, norms = gradients_of(tmp_path, monkeypatch, 8)
    assert norms == {f"grad_norm_{name}": pytest.approx(norm(plain[name]), rel=1e-5) for name in plain}
    low, high = sorted(norm(gradient) for gradient in plain.values())
    assert low < 0.8 * high
    limit = math.sqrt(low * high)  # between the two: one is clipped, the other is not
    clipped, again = gradients_of(tmp_path, monkeypatch, 4, max_grad_norm=limit)
    assert again == pytest.approx(norms, rel=1e-4), "the norm before clipping is reported"
    for name, gradient in plain.items():
        factor = min(1, limit / norm(gradient))
        for found, expected in zip(clipped[name], gradient, strict=True):
            torch.testing.assert_close(found, expected * factor, rtol=1e-4, atol=1e-5)


def test_one_models_norm_is_called_grad_norm(tmp_path):
    model = torch.nn.Linear(1, 1)
    with Session(options_for(tmp_path), {"policy": model}, 1, "test", lr=1e-3) as session:
        for _ in session.steps():
            session.backward(3 * model.weight.sum() + 4 * model.bias.sum())
            assert session.optimizer_step() == {"grad_norm": pytest.approx(5.0)}  # sqrt(9 + 16)


# ---------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_with_advice(tmp_path, value):
    def poison(session, step):
        if step == 2:
            session.backward(torch.tensor(value, requires_grad=True))

    with pytest.raises(RunError) as caught:
        toy_run(ToyOptions(out=tmp_path), poison)
    expected = f"the loss is {value} at step 3; no checkpoint was written yet; try a lower --lr or --precision float32"
    assert str(caught.value) == expected
    with pytest.raises(RunError) as caught:
        toy_run(ToyOptions(out=tmp_path, checkpoint_seconds=0), poison)
    kept = tmp_path / "checkpoints" / "step-000002"
    assert f"at step 3; the checkpoint {kept} is kept; try a lower --lr" in str(caught.value)
    assert kept.is_dir()


def test_a_gradient_that_is_not_finite_stops_the_run_before_it_reaches_the_weights(tmp_path):
    weights = []

    def poison(session, step):
        if step == 1:
            weight = session.modules["head"].weight
            weights.append((weight, weight.detach().clone()))
            session.backward((weight * 0).square().sum().sqrt())  # the loss is 0, its gradient 0/0

    with pytest.raises(RunError, match="the gradient of head is nan at step 2; no checkpoint was written yet; try"):
        toy_run(ToyOptions(out=tmp_path), poison)
    assert torch.equal(*weights[0])


# --------------------------------------------------------------------------------------------------- the clock


def test_due_counts_steps_done_and_always_names_the_last(tmp_path):
    due = {every: [] for every in (0, 1, 3, 4)}
    with Session(options_for(tmp_path), {"m": torch.nn.Linear(1, 1)}, 10, "test", lr=1e-3) as session:
        for _ in session.steps():
            for every, steps in due.items():
                if session.due(every):
                    steps.append(session.step + 1)
    assert due == {0: [10], 1: list(range(1, 11)), 3: [3, 6, 9, 10], 4: [4, 8, 10]}


def test_random_numbers_of_a_step_depend_on_seed_and_step_alone(tmp_path):
    def numbers(name, seed, total):
        found = []
        with Session(
            options_for(tmp_path / name, seed=seed), {"m": torch.nn.Linear(1, 1)}, total, "test", lr=1e-3
        ) as session:
            for step in session.steps():
                torch.rand(step)  # a step that draws more must not shift the next
                torch.manual_seed(torch.initial_seed())
                found.append(torch.rand(()).item())
        return found

    first = numbers("a", 0, 4)
    assert numbers("b", 0, 6)[:4] == first
    assert len(set(first + numbers("c", 1, 4))) == 8


def test_derived_seeds_are_the_same_on_every_machine():
    # int(sha256("(0, 'step', 5)").hexdigest()[:16], 16) >> 1
    assert derived_seed(0, "step", 5) == 3707774027182759260
    seeds = {derived_seed(a, b) for a in range(10) for b in ("x", "y")}
    assert len(seeds) == 20
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_permutations_shuffle_and_depend_on_their_parts():
    assert sorted(permutation(50, 1, "epoch", 0)) == list(range(50))
    assert permutation(50, 1, "epoch", 0).tolist() == permutation(50, 1, "epoch", 0).tolist()
    assert permutation(50, 1, "epoch", 0).tolist() != permutation(50, 1, "epoch", 1).tolist()
    firsts = [int(permutation(4, seed)[0]) for seed in range(400)]
    assert np.bincount(firsts).min() > 60  # 100 expected each


# -------------------------------------------------------------------------------------------------------- metrics


def test_a_metrics_line_holds_what_was_logged_in_its_step(tmp_path):
    with Session(options_for(tmp_path, log_every=2), {"m": torch.nn.Linear(1, 1)}, 5, "test", lr=1e-3) as session:
        for step in session.steps():
            session.log(100, loss=step / 10)
            if session.due(3):
                session.log(valid_loss=step / 7)
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [2, 3, 4, 5]
    assert [line["loss"] for line in lines] == [0.1, 0.2, 0.3, 0.4]
    assert {line["step"]: line["valid_loss"] for line in lines if "valid_loss" in line} == {
        3: 0.28571429,
        5: 0.57142857,
    }
    assert all(line["tokens_per_second"] > 0 for line in lines)


def test_small_numbers_keep_their_digits_and_impossible_ones_are_left_out(tmp_path):
    log = MetricsLog(tmp_path, 0, tensorboard=False)
    log.write(1, {"lr": 1.23456789e-9, "pairs": 1234567890123, "nan": math.nan, "inf": -math.inf, "zero": 0.0})
    log.close()
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line) == {"step": 1, "lr": 1.2345679e-09, "pairs": 1234567890123, "zero": 0.0}


def test_tensorboard_gets_the_same_numbers(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    log = MetricsLog(tmp_path, 0, tensorboard=True)
    log.write(1, {"loss": 0.5})
    log.write(2, {"loss": 0.25})
    log.close()
    events = []
    for file in (tmp_path / "tensorboard").iterdir():
        raw, at = file.read_bytes(), 0
        while at < len(raw):  # length (8 bytes), its checksum (4), the event, its checksum (4)
            length = int.from_bytes(raw[at : at + 8], "little")
            events.append(Event.FromString(raw[at + 12 : at + 12 + length]))
            at += 16 + length
    found = [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value]
    assert found == [(1, "loss", 0.5), (2, "loss", 0.25)]


def test_a_missing_metrics_file_is_empty(tmp_path):
    assert read_metrics(tmp_path) == []
    (tmp_path / "a.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_json_lines(tmp_path / "a.jsonl") == [{"step": 1}, {"step": 2}]


# -------------------------------------------------------------------------------------------------------- publish


def test_publishing_replaces_the_files_and_names_the_weights_first(tmp_path):
    staged = tmp_path / ".staged"
    staged.mkdir()
    for name in ("config.json", "model.safetensors", "chat_template.jinja", ".config.json.abc.tmp"):
        (staged / name).write_text(f"new {name}")
    (staged / "model.safetensors").chmod(0o600)  # as safetensors makes it: others could not read the model
    (tmp_path / "config.json").write_text("old")
    (tmp_path / "metrics.jsonl").write_text("stays")
    moved = publish(staged, tmp_path)
    assert [file.name for file in moved] == ["model.safetensors", "chat_template.jinja", "config.json"]
    assert {file.stat().st_mode & 0o777 for file in moved} == {0o644}
    assert {file.name: file.read_text() for file in moved} == {file.name: f"new {file.name}" for file in moved}
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "metrics.jsonl",
        "model.safetensors",
    ]
