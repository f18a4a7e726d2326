"""N steps equal k steps, a stop and N - k steps: weights, moments, data order, state and metrics, bit for bit."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.toy_run import ToyOptions, make_modules, path, slowly, toy_run
from wukong.errors import RunError, UsageError
from wukong.files import fingerprint
from wukong.training.checkpoint import list_checkpoints, load_latest, prune_checkpoints, save_checkpoint
from wukong.training.metrics import read_json_lines, read_metrics
from wukong.training.session import Interrupted, Session


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    options = ToyOptions(out=tmp_path_factory.mktemp("whole"))
    return options, toy_run(options)


def without_times(records: list[dict]) -> list[dict]:
    return [{k: v for k, v in record.items() if k != "tokens_per_second"} for record in records]


def assert_equal_runs(found: ToyOptions, expected: ToyOptions) -> None:
    assert path(found).read_bytes() == path(expected).read_bytes()
    assert without_times(read_metrics(found.out)) == without_times(read_metrics(expected.out))
    assert (found.out / "samples.jsonl").read_bytes() == (expected.out / "samples.jsonl").read_bytes()


def stop_at(*steps: int, by: signal.Signals = signal.SIGTERM):
    return lambda session, step: os.kill(os.getpid(), by) if step in steps else None


def test_the_toy_is_worth_resuming(uninterrupted):
    """If these did not hold, equality after a resume would say little."""
    options, session = uninterrupted
    tensors = load_file(path(options))
    before = make_modules(options)["head"].weight
    assert not torch.equal(tensors["last/weights/head/weight"], before)
    assert tensors["last/adam/exp_avg_sq/head/weight"].gt(0).all()
    assert session.state["best_step"] == 5
    assert not torch.equal(tensors["last/weights/head/weight"], tensors["best/weights/head/weight"])
    assert len({tuple(rows) for rows in session.state["seen"]}) == 12, "each step has other data"
    twice = [load_file(path(options)), run_again(options)]
    assert all(torch.equal(twice[0][name], twice[1][name]) for name in twice[0])


def run_again(options: ToyOptions) -> dict[str, torch.Tensor]:
    again = options.model_copy(update={"out": options.out / "again"})
    toy_run(again)
    return load_file(path(again))


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stops", [[0], [6], [3, 4, 9], [11]])
def test_a_resumed_run_equals_an_uninterrupted_run(tmp_path, uninterrupted, stops, signal_number, capsys):
    expected, whole = uninterrupted
    options = expected.model_copy(update={"out": tmp_path})
    for stop in stops:
        with pytest.raises(Interrupted) as caught:
            toy_run(options, stop_at(stop, by=signal_number))
        assert caught.value.code == 128 + signal_number
        assert [p.name for p in list_checkpoints(tmp_path / "checkpoints")][-1] == f"step-{stop + 1:06d}"
        assert f"stopped after step {stop + 1}; run the same command to resume" in capsys.readouterr().err
    session = toy_run(options)
    assert session.start == stops[-1] + 1
    assert f"toy: resuming after step {stops[-1] + 1} of 12" in capsys.readouterr().err
    assert session.state == whole.state
    assert_equal_runs(options, expected)


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_the_signal_handlers_are_put_back(tmp_path, signal_number):
    before = signal.getsignal(signal_number)
    during = []
    toy_run(ToyOptions(out=tmp_path, steps=1), lambda *_: during.append(signal.getsignal(signal_number)))
    assert signal.getsignal(signal_number) is before
    assert during[0] is not before


def test_a_second_signal_stops_at_once(tmp_path):
    def twice(session, step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("the step should not go on")

    with pytest.raises(Interrupted):
        toy_run(ToyOptions(out=tmp_path), twice)
    assert not list_checkpoints(tmp_path / "checkpoints")


def test_a_session_runs_in_a_thread_too(tmp_path, uninterrupted):
    options = uninterrupted[0].model_copy(update={"out": tmp_path})
    thread = threading.Thread(target=toy_run, args=(options,))
    thread.start()
    thread.join()
    assert_equal_runs(options, uninterrupted[0])


# ----------------------------------------------------------------------------------------------- other processes


@pytest.fixture(scope="module")
def start():
    """Starts toy_run(options) in a process of its own, forked from one that has torch ready."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.warm_toy"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)
        forkserver.ensure_running()

    def run(options: ToyOptions):
        process = context.Process(target=toy_run, args=(options, slowly))
        process.start()
        return process

    return run


def wait_for_steps(options: ToyOptions, steps: int, process) -> None:
    deadline = time.monotonic() + 300
    while len(read_json_lines(options.out / "metrics.jsonl")) < steps:
        assert process.is_alive(), "it ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.001)


LONG = {"steps": 240, "eval_every": 7, "log_every": 1}  # no machine is so fast that it ends before the tenth kill


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
    options = ToyOptions(out=tmp_path_factory.mktemp("long"), **LONG)
    toy_run(options)
    return options


def test_sigterm_from_outside_saves_a_checkpoint_and_says_so_by_its_exit_code(tmp_path, long_run, start):
    options = long_run.model_copy(update={"out": tmp_path})
    process = start(options)
    wait_for_steps(options, 3, process)
    process.terminate()
    process.join()
    assert process.exitcode == 128 + signal.SIGTERM
    steps = [int(p.name[5:]) for p in list_checkpoints(tmp_path / "checkpoints")]
    assert len(steps) == 1
    assert 3 <= steps[0] < 240
    toy_run(options)
    assert_equal_runs(options, long_run)


@pytest.mark.slow
def test_kill_9_at_random_moments_changes_nothing(tmp_path, long_run, start):
    options = long_run.model_copy(update={"out": tmp_path, "checkpoint_seconds": 0.0})
    moments, progress = random.Random(0), [0]
    for _ in range(10):
        process = start(options)
        begun = len(read_json_lines(options.out / "metrics.jsonl"))
        deadline = time.monotonic() + 300
        # Once it is at work (the directory changes), die within the next steps: in an update, a save, a rename ...
        while len(read_json_lines(options.out / "metrics.jsonl")) <= begun:
            assert process.is_alive(), "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.05))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        kept = list_checkpoints(tmp_path / "checkpoints")
        progress.append(int(kept[-1].name[5:]) if kept else 0)
    assert len(set(progress)) > 5, progress
    assert progress == sorted(progress), "what was saved stays saved"
    assert progress[-1] < 240
    toy_run(options)
    assert_equal_runs(options, long_run)
    leftovers = [p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.startswith(".")]
    assert leftovers == []


# ------------------------------------------------------------------------------------------- damaged checkpoints


def stopped_twice(options: ToyOptions):
    """Two checkpoints, after steps 4 and 7."""
    for stop in (3, 6):
        with pytest.raises(Interrupted):
            toy_run(options, stop_at(stop))
    return list_checkpoints(options.out / "checkpoints")


def cut(file):
    file.write_bytes(file.read_bytes()[:-7])


def flip(file):
    raw = bytearray(file.read_bytes())
    raw[-9] ^= 1
    file.write_bytes(raw)


def replace_weights(directory):
    """A file that is whole, but not of this format."""
    (directory / "state.safetensors").write_bytes(b"not tensors")
    saved = json.loads((directory / "state.json").read_text())
    saved["sha256"] = fingerprint(directory / "state.safetensors")
    (directory / "state.json").write_text(json.dumps(saved))


DAMAGE = {
    "weights foreign": replace_weights,
    "weights cut": lambda d: cut(d / "state.safetensors"),
    "one bit flipped": lambda d: flip(d / "state.safetensors"),
    "weights missing": lambda d: (d / "state.safetensors").unlink(),
    "state empty": lambda d: (d / "state.json").write_text(""),
    "state not ours": lambda d: (d / "state.json").write_text('["step"]'),
    "state missing": lambda d: (d / "state.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(tmp_path, uninterrupted, damage, capsys):
    options = uninterrupted[0].model_copy(update={"out": tmp_path})
    newest = stopped_twice(options)[-1]
    damage(newest)
    capsys.readouterr()
    session = toy_run(options)
    assert session.start == 4
    warning = capsys.readouterr().err
    assert f"warning: checkpoint {newest} is damaged (" in warning
    assert "going back to the one before it" in warning
    assert newest.with_name("damaged-step-000007").is_dir()
    assert_equal_runs(options, uninterrupted[0])


def test_with_all_checkpoints_damaged_the_run_begins_again(tmp_path, uninterrupted):
    options = uninterrupted[0].model_copy(update={"out": tmp_path})
    for checkpoint in stopped_twice(options):
        flip(checkpoint / "state.safetensors")
    assert toy_run(options).start == 0
    assert_equal_runs(options, uninterrupted[0])


def test_a_checkpoint_of_another_model_is_refused_before_anything_is_overwritten(tmp_path):
    options = ToyOptions(out=tmp_path)
    stopped_twice(options)
    for other in ({"head": torch.nn.Linear(16, 2)}, {"body": torch.nn.Linear(6, 16)}):
        modules = make_modules(options) | other
        before = {name: [p.clone() for p in module.parameters()] for name, module in modules.items()}
        optimizer = torch.optim.AdamW(p for m in modules.values() for p in m.parameters())
        with pytest.raises(
            UsageError, match=r"step-000007: a checkpoint of another model \(tensor .*; choose another --out"
        ):
            load_latest(tmp_path / "checkpoints", modules, optimizer)
        for name, module in modules.items():
            assert all(torch.equal(a, b) for a, b in zip(before[name], module.parameters(), strict=True))
        assert len(list_checkpoints(tmp_path / "checkpoints")) == 2


# --------------------------------------------------------------------------------------------- checkpoint files


@pytest.fixture
def trained():
    modules = make_modules(ToyOptions(out="."))
    optimizer = torch.optim.AdamW([p for m in modules.values() for p in m.parameters()], fused=True)
    modules["head"](modules["body"](torch.ones(2, 6))).sum().backward()
    optimizer.step()
    return modules, optimizer


def test_a_loaded_checkpoint_holds_the_moments_and_training_on_leaves_its_file_alone(tmp_path, trained):
    modules, optimizer = trained
    save_checkpoint(tmp_path, 1, modules, optimizer, {})
    expected = {p: {k: v.clone() for k, v in optimizer.state[p].items()} for p in optimizer.state}
    raw = (tmp_path / "step-000001" / "state.safetensors").read_bytes()
    optimizer.state.clear()
    assert load_latest(tmp_path, modules, optimizer) == (1, {})
    for parameter, moments in expected.items():
        assert optimizer.state[parameter].keys() == moments.keys() == {"step", "exp_avg", "exp_avg_sq"}
        for key, value in moments.items():
            assert torch.equal(optimizer.state[parameter][key], value)
            assert optimizer.state[parameter][key].device == parameter.device, "fused AdamW wants its step there too"
    optimizer.step()
    assert (tmp_path / "step-000001" / "state.safetensors").read_bytes() == raw


def test_a_step_before_the_first_update_has_no_moments(tmp_path):
    modules = make_modules(ToyOptions(out=tmp_path))
    optimizer = torch.optim.AdamW([p for m in modules.values() for p in m.parameters()])
    save_checkpoint(tmp_path, 0, modules, optimizer, {"a": [1]})
    assert load_latest(tmp_path, modules, optimizer) == (0, {"a": [1]})
    assert not optimizer.state


def test_checkpoints_are_ordered_by_number_and_old_ones_go(tmp_path, trained):
    for step in (999_999, 1_000_000, 5, 1_000_001):
        save_checkpoint(tmp_path, step, *trained, {"step": step})
    (tmp_path / ".step-000009.wukong-0123abcd.tmp").mkdir()  # a save that was killed
    assert load_latest(tmp_path, *trained) == (1_000_001, {"step": 1_000_001})
    prune_checkpoints(tmp_path, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-1000000", "step-1000001"]


def test_checkpoints_are_written_when_their_time_has_come_and_two_are_kept(tmp_path):
    seen = []

    def look(session, step):
        seen.append([int(p.name[5:]) for p in list_checkpoints(tmp_path / "checkpoints")])

    toy_run(ToyOptions(out=tmp_path, steps=5, checkpoint_seconds=0), look)
    assert seen == [[], [1], [1, 2], [2, 3], [3, 4]]


@pytest.mark.parametrize("when", ["weights", "state"])
def test_a_full_disk_stops_with_one_line_and_keeps_the_last_checkpoint(tmp_path, trained, monkeypatch, when):
    modules, optimizer = trained
    save_checkpoint(tmp_path, 1, modules, optimizer, {})
    refused = OSError(28, "No space left on device")
    if when == "weights":
        from safetensors import SafetensorError

        refused = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        monkeypatch.setattr("wukong.training.checkpoint.save_file", lambda *_: (_ for _ in ()).throw(refused))
    else:
        monkeypatch.setattr("pathlib.Path.write_text", lambda *_: (_ for _ in ()).throw(refused))
    with pytest.raises(RunError, match=r"step-000002: cannot write \(No space left on device\)"):
        save_checkpoint(tmp_path, 2, modules, optimizer, {})
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]
    assert load_latest(tmp_path, modules, optimizer)[0] == 1


# -------------------------------------------------------------------------------------------- best weights


def with_losses(tmp_path, losses, *, stop=None, restore=True):
    """A run whose k-th evaluation has the k-th loss; returns the session and the weight after each step."""
    options = ToyOptions(out=tmp_path, steps=len(losses))
    model, weights = torch.nn.Linear(1, 1, bias=False), []
    torch.nn.init.zeros_(model.weight)
    with Session(options, {"model": model}, len(losses), "toy", lr=1e-3) as session:
        for step in session.steps():
            session.backward(-model.weight.sum())
            session.optimizer_step()
            weights.append(model.weight.item())
            assert session.due(1)
            session.keep_best(losses[step])
            if step == stop:
                os.kill(os.getpid(), signal.SIGTERM)
        if restore:
            session.restore_best()
    return session, weights, model.weight.item()


@pytest.mark.parametrize(("losses", "best"), [([3, 1, 2, 4], 1), ([3, 2, 1], 2), ([1, 2, 3], 0), ([2, 2, 2], 0)])
def test_the_weights_of_the_lowest_loss_come_back(tmp_path, losses, best):
    session, weights, final = with_losses(tmp_path, losses)
    assert len(set(weights)) == len(losses)
    assert final == weights[best]
    assert session.state["best_loss"] == min(losses)
    assert session.state["best_step"] == best + 1


def test_without_an_evaluation_the_last_weights_stay(tmp_path):
    session, weights, final = with_losses(tmp_path, [float("inf")] * 3)
    assert final == weights[-1]
    assert "best_step" not in session.state


def test_the_best_weights_survive_a_stop(tmp_path):
    losses = [3, 1, 2, 4, 5]
    with pytest.raises(Interrupted):
        with_losses(tmp_path, losses, stop=3)
    _, weights, final = with_losses(tmp_path, losses)
    assert len(weights) == 1
    assert final == with_losses(tmp_path / "whole", losses)[1][1]


def test_best_weights_that_are_gone_stop_the_run(tmp_path):
    with pytest.raises(Interrupted):
        with_losses(tmp_path, [1, 2, 3], stop=1)
    shutil.rmtree(tmp_path / "checkpoints" / "best")
    with pytest.raises(RunError, match="the best weights are missing"):
        with_losses(tmp_path, [1, 2, 3])


# ------------------------------------------------------------------------------------------------------- metrics


def test_metrics_after_a_resume_have_neither_duplicates_nor_gaps(tmp_path, uninterrupted):
    options = uninterrupted[0].model_copy(update={"out": tmp_path, "checkpoint_seconds": 0.0})
    with pytest.raises(ZeroDivisionError):  # dies in step 8, between two checkpoints and after two more lines
        toy_run(options, lambda session, step: 1 / 0 if step == 8 else None)
    shutil.rmtree(list_checkpoints(tmp_path / "checkpoints")[-1])
    with (tmp_path / "metrics.jsonl").open("a") as out:
        out.write('{"step": 8, "lo')  # and a line cut off by a kill -9
    toy_run(options)
    # log_every 2, eval_every 5, 12 steps:
    assert [line["step"] for line in read_metrics(tmp_path)] == [2, 4, 5, 6, 8, 10, 12]
    assert [line["step"] for line in read_metrics(tmp_path) if "valid_loss" in line] == [5, 10, 12]
    assert [line["step"] for line in read_json_lines(tmp_path / "samples.jsonl")] == [5, 10, 12]
    assert without_times(read_metrics(tmp_path)) == without_times(read_metrics(uninterrupted[0].out))


def test_what_auto_chose_at_the_start_holds_after_a_resume(tmp_path, monkeypatch):
    options = ToyOptions(out=tmp_path, precision="auto")
    monkeypatch.setattr("wukong.training.compute._bfloat16_pays", lambda device: True)
    with pytest.raises(Interrupted):
        toy_run(options, stop_at(2))
    monkeypatch.setattr("wukong.training.compute._bfloat16_pays", lambda device: False)
    session = toy_run(options)
    assert session.compute.dtype == torch.bfloat16
    assert json.loads(json.dumps(session.state))["dtype"] == "bfloat16"
