"""Several processes make what one makes: every stage that trains, whole models and sharded ones; they stop together,
survive the death of one, and go on in another number. With gloo on CPUs, with NCCL where there are GPUs enough."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.stages.tiny_data import FOODS, tokenised, write_jsonl
from tests.training.jobs import SECONDS, Jobs, run_programs
from wukong.model.families import PRESET_CONFIGS, new_model
from wukong.model.hub import load_policy, save_policy
from wukong.report.traces import read_trace
from wukong.runner import run as run_recipe
from wukong.training.checkpoint import list_checkpoints
from wukong.training.metrics import read_json_lines, read_metrics

LOGS = {"tensorboard": False, "precision": "float32", "checkpoint_seconds": 1e9, "log_every": 1}
# Adam divides gradients by their size: where the true one is 0 (the keys' biases) it would blow up rounding errors.
TRAIN = LOGS | {"adam_eps": 1e-4, "lr": 1e-3, "micro_batch_tokens": 256, "warmup_steps": 1}
ONLINE = TRAIN | {
    "model": "{one}/sft", "reward_model": "{one}/reward", "prompts": ["{data}/prompts.jsonl"],
    "allow_chance_reward_model": True,
    "max_new_tokens": 8, "batch_size": 8, "episodes": 24, "minibatch_size": 4, "missing_eos_score": None,
    "trace": 2,
}  # fmt: skip
STEPS: dict[str, dict] = {
    "pretrain": TRAIN | {
        "data": "{data}/tokens", "model": "test", "tokens": 6 * 448, "batch_tokens": 448, "eval_every": 3,
        "eval_tokens": 2000, "sample_prompts": ["Boil"],
    },
    "sft": TRAIN | {
        "model": "{one}/pretrain", "data": ["{data}/taught.jsonl"], "batch_size": 7, "epochs": 1.5, "eval_every": 2,
        "valid_fraction": 0.2,
    },
    "reward": TRAIN | {
        "model": "{one}/sft", "data": ["{data}/pairs.jsonl"], "batch_size": 5, "eval_every": 2, "valid_fraction": 0.3,
        "normalise_samples": 16,
    },
    "dpo": TRAIN | {"model": "{one}/sft", "data": ["{data}/pairs.jsonl"], "batch_size": 7, "valid_fraction": 0.3},
    "kto": TRAIN | {"model": "{one}/sft", "data": ["{data}/pairs.jsonl"], "batch_size": 7, "valid_fraction": 0.3},
    "ppo": ONLINE | {"ppo_epochs": 2, "kl_target": 1.0, "length_penalty": 0.01},
    "reinforce": ONLINE | {"baseline": "learned", "ptx_data": "{data}/tokens", "ptx_coef": 0.1},
    "rloo": ONLINE | {"samples_per_prompt": 4},
    "grpo": ONLINE | {"samples_per_prompt": 4, "entropy_coef": 0.01},
    "bestofn": ONLINE | {"samples_per_prompt": 2, "minibatch_size": 4},
    "ppo_careful": ONLINE | {
        "ppo_epochs": 4, "max_update_kl": 1e-4, "value_warmup": 1, "importance_cap": 2.0, "clip_range_high": 0.28,
    },
    "grpo_dapo": ONLINE | {
        "samples_per_prompt": 2, "dynamic_sampling": 2, "clip_range_high": 0.28, "average": "token",
        "reward_model": None, "rewards": ["tests.training.test_distributed:even"],
    },
    "distill": TRAIN | {
        "model": "{one}/sft", "teacher": "{one}/pretrain", "prompts": ["{data}/prompts.jsonl"], "batch_size": 7,
        "episodes": 21, "max_new_tokens": 8, "valid_fraction": 0.3, "eval_every": 2,
    },
}  # fmt: skip


def even(prompts: list, texts: list[str]) -> list[float]:
    """A reward by which several answers to one prompt are often alike."""
    return [float(len(text) % 2) for text in texts]


def answers() -> list[dict]:
    """Pairs, the better answer being the shorter one, and a ranking for every third prompt."""
    found: list[dict] = []
    for i, food in enumerate(FOODS * 2):
        prompt, long = f"How about {food}, {i}?", f"{food} with {FOODS[i % 7]} and more."
        if i % 3:
            found.append({"prompt": prompt, "chosen": f"{food}.", "rejected": long})
        else:
            found.append({"prompt": prompt, "chosen": f"{i}.", "rejected": long})
            found.append({"prompt": prompt, "chosen": f"{i}.", "rejected": f"{food} and {i}."})
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/, and one/: what one process makes of it."""
    root = tmp_path_factory.mktemp("world")
    (root / "data").mkdir()
    tokenised(root / "data")
    write_jsonl(root / "data" / "pairs.jsonl", answers())
    write_jsonl(root / "data" / "prompts.jsonl", [{"prompt": f"Boil {food}"} for food in FOODS])
    torch.set_num_threads(1)
    run_recipe(recipe(root, "one"), root / "one")
    return root


def filled(value, root: Path):
    if isinstance(value, str):
        return value.replace("{data}", str(root / "data")).replace("{one}", str(root / "one"))
    return [filled(item, root) for item in value] if isinstance(value, list) else value


def recipe(root: Path, name: str, **changes) -> Path:
    """Every step starts from what one process made, so that no difference adds up over the steps."""
    steps = {}
    for step, options in STEPS.items():
        steps[step] = {k: filled(v, root) for k, v in (options | changes).items()} | {"out": f"{{run}}/{step}"}
    path = root / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"name": name, "steps": steps}, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def jobs() -> Jobs:
    return Jobs()


KINDS = {"2 ddp": (2, "ddp"), "4 ddp": (4, "ddp"), "2 fsdp": (2, "fsdp"), "3 fsdp": (3, "fsdp")}


@pytest.fixture(
    scope="module",
    params=[pytest.param(kind, marks=pytest.mark.slow) for kind in ("2 ddp", "2 fsdp", "4 ddp", "3 fsdp")],
)
def together(request: pytest.FixtureRequest, world: Path, jobs: Jobs) -> Path:
    """The run directory of the same recipe, run by several processes."""
    size, parallel = KINDS[request.param]
    name = request.param.replace(" ", "-")
    path = recipe(world, name, parallel=parallel)
    codes = jobs.run(size, ["run", str(path), "--run-dir", str(world / name)], world / f"{name}.log")
    assert codes == [0] * size, (world / f"{name}.log").read_text()
    return world / name


# Written with 8 significant digits; what is left out depends on the clock, or on how the batch was cut into parts.
NOT_COMPARED = ("seconds", "per_second", "first_ratio_error", "sampler_logprob_gap", "best_")


@pytest.mark.parametrize("step", STEPS)
def test_several_processes_make_what_one_makes(world: Path, together: Path, step: str) -> None:
    expected, found = (load_file(place / step / "model.safetensors") for place in (world / "one", together))
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
    curves = [read_metrics(place / step) for place in (world / "one", together)]
    assert len(curves[0]) == len(curves[1]) >= 3
    for one, several in zip(*curves, strict=True):
        assert one.keys() == several.keys()
        for key in one:
            undecided = step == "dpo" and key == "accuracy" and one["step"] == 1  # both sides of every pair are 0
            if not undecided and not any(part in key for part in NOT_COMPARED):
                assert several[key] == pytest.approx(one[key], rel=2e-3, abs=2e-5), (key, one["step"])
    results = [
        json.loads((place / step / "provenance.json").read_text())["results"] for place in (world / "one", together)
    ]
    assert results[0].keys() == results[1].keys()


@pytest.mark.parametrize("step", ["pretrain", "ppo", "grpo", "bestofn"])
def test_the_responses_are_those_of_one_process(world: Path, together: Path, step: str) -> None:
    expected, found = (read_json_lines(place / step / "samples.jsonl") for place in (world / "one", together))
    assert [line["text"] for line in found] == [line["text"] for line in expected]
    assert expected


@pytest.mark.parametrize("step", ["ppo", "grpo"])
def test_the_trace_is_that_of_one_process(world: Path, together: Path, step: str) -> None:
    expected, found = (read_trace(place / step) for place in (world / "one", together))
    assert [one.step for one in found] == [one.step for one in expected] == [1, 2, 3]
    for ours, theirs in zip(found, expected, strict=True):
        for response, same in zip(ours.responses, theirs.responses, strict=True):
            assert response.tokens == same.tokens
            for name in ("logprobs", "reference_logprobs", "rewards", "advantages", "new_logprobs", "policy_losses"):
                assert getattr(response, name) == pytest.approx(getattr(same, name), rel=2e-3, abs=1e-4), name


def test_one_of_them_speaks_and_none_leaves_anything_behind(together: Path) -> None:
    said = together.with_suffix(".log").read_text()
    for step in STEPS:
        assert said.count(f"{step} -> {together / step}") == 1
        assert sorted(p.name for p in (together / step).iterdir() if p.name.startswith(".")) == []
        assert not (together / step / "checkpoints").exists()
    assert "Traceback" not in said


# --------------------------------------------------------------------------------------- stopping and going on


def command(root: Path, step: str, out: Path, **changes) -> list[str]:
    """The step as a command of its own."""
    arguments = [step, "--out", str(out)]
    for name, value in (STEPS[step] | changes).items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(flag if value else flag.replace("--", "--no-"))
        else:
            values = filled(value, root) if isinstance(value, list) else [filled(value, root)]
            arguments += [flag, *map(str, values)]
    return arguments


def assert_made_by_one(root: Path, step: str, out: Path) -> None:
    for name, tensor in load_file(root / "one" / step / "model.safetensors").items():
        torch.testing.assert_close(load_file(out / "model.safetensors")[name], tensor, atol=1e-5, rtol=0)
    expected, found = (read_metrics(place) for place in (root / "one" / step, out))
    assert [line["step"] for line in found] == [line["step"] for line in expected]


def test_a_signal_to_one_stops_all_after_the_same_step_and_others_go_on(
    world: Path, jobs: Jobs, tmp_path: Path
) -> None:
    """4 processes, then 2 with sharded modules, then one; each resumes the checkpoint of those before."""
    out, log = tmp_path / "base", tmp_path / "log"
    arguments = command(world, "pretrain", out)
    assert jobs.run(4, arguments, log, {2: (2, signal.SIGTERM)}) == [128 + signal.SIGTERM] * 4
    assert [p.name for p in list_checkpoints(out / "checkpoints")] == ["step-000002"]
    assert log.read_text().count("stopped after step 2") == 1
    codes = jobs.run(2, [*arguments, "--parallel", "fsdp"], log, {0: (4, signal.SIGINT)})
    assert codes == [128 + signal.SIGINT] * 2
    newest = list_checkpoints(out / "checkpoints")[-1]
    assert newest.name == "step-000004"
    assert len(list(newest.glob("*.safetensors"))) == 2, "each wrote its own part"
    assert not list(newest.glob(".metadata")), "no pickle"
    assert jobs.run(1, arguments, log) == [0]
    assert log.read_text().count("resuming after step 4 of 6") == 1
    assert_made_by_one(world, "pretrain", out)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_the_death_of_one_ends_all_with_one_line_and_the_same_command_goes_on(
    world: Path, jobs: Jobs, tmp_path: Path, parallel: str
) -> None:
    out, log = tmp_path / "base", tmp_path / "log"
    arguments = command(world, "pretrain", out, checkpoint_seconds=0, parallel=parallel)
    codes = jobs.run(4 if parallel == "ddp" else 2, arguments, log, {1: (4, signal.SIGKILL)})
    assert codes.pop(1) == -signal.SIGKILL
    assert set(codes) == {1}
    said = log.read_text()
    assert said.count("wukong: error: another process of this job has ended; run the same command") == 1
    assert said.count("wukong: error") == 1
    assert "Traceback" not in said
    assert list_checkpoints(out / "checkpoints")[-1].name == "step-000003"
    assert jobs.run(2, arguments, log) == [0] * 2
    assert_made_by_one(world, "pretrain", out)


@pytest.fixture(scope="module")
def untied(world: Path) -> Path:
    """A Llama with an output layer of its own, and what one process makes of it."""
    _, tokenizer = load_policy(world / "one" / "sft")
    sizes = replace(PRESET_CONFIGS["llama-test"], vocab_size=tokenizer.vocab_size, tied=False, qkv_bias=True)
    torch.manual_seed(0)
    model = new_model(sizes)
    save_policy(world / "untied", model, tokenizer)
    return world / "untied"


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_an_untied_llama_is_trained_together_as_alone(
    world: Path, jobs: Jobs, untied: Path, tmp_path: Path, parallel: str
) -> None:
    found = []
    for size, kind in ((1, "ddp"), (2, parallel)):
        out = tmp_path / f"sft-{size}"
        arguments = command(world, "sft", out, model=str(untied), parallel=kind)
        assert jobs.run(size, arguments, tmp_path / "log") == [0] * size, (tmp_path / "log").read_text()
        found.append(load_file(out / "model.safetensors"))
    start = load_file(untied / "model.safetensors")
    assert "lm_head.weight" in start
    for name, expected in found[0].items():
        torch.testing.assert_close(found[1][name], expected, rtol=1e-4, atol=1e-5)
        assert (expected - start[name]).abs().max() > 1e-4


@pytest.mark.slow
def test_a_damaged_shard_is_noticed_and_the_checkpoint_before_is_used(world: Path, jobs: Jobs, tmp_path: Path) -> None:
    out, log = tmp_path / "base", tmp_path / "log"
    arguments = command(world, "pretrain", out, checkpoint_seconds=0, parallel="fsdp")
    jobs.run(2, arguments, log, {1: (4, signal.SIGKILL)})
    shard = sorted(list_checkpoints(out / "checkpoints")[-1].glob("*.safetensors"))[1]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert jobs.run(2, arguments, log) == [0] * 2
    assert log.read_text().count("is damaged (its hash does not match)") == 1
    assert log.read_text().count("resuming after step 2 of 6") == 1
    assert_made_by_one(world, "pretrain", out)


def test_an_error_that_all_meet_is_said_once(world: Path, jobs: Jobs, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert jobs.run(2, command(world, "pretrain", tmp_path / "base", context=65), log) == [2, 2]
    assert log.read_text().count("wukong: error: --context 65 is longer than the model's 64") == 1


def test_fsdp_needs_several_processes(world: Path, jobs: Jobs, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert jobs.run(1, command(world, "pretrain", tmp_path / "base", parallel="fsdp"), log) == [2]
    assert "start them with torchrun" in log.read_text()


# What threads of gloo do now and then while the interpreter is taken down, they do here every time.
ABORTS = """
import atexit, os, sys
atexit.register(os.abort)
from wukong import cli
from wukong.training.session import Session
show, number = Session.show, int(sys.argv.pop(1))
def stopped(self, **notes):
    show(self, **notes)
    if number and self.step == 1:
        os.kill(os.getpid(), number)
Session.show = stopped
sys.exit(cli.command())
"""


@pytest.mark.parametrize(
    ("number", "changes", "code"),
    [(0, {}, 0), (signal.SIGTERM, {}, 128 + signal.SIGTERM), (0, {"context": 65}, 2)],
    ids=["done", "stopped", "refused"],
)
def test_the_exit_code_of_a_program_is_its_own_whatever_its_threads_do_at_the_end(
    world: Path, tmp_path: Path, number: int, changes: dict, code: int
) -> None:
    arguments = command(world, "pretrain", tmp_path / "base", parallel="fsdp", **changes)
    codes, said = run_programs([sys.executable, "-c", ABORTS, str(int(number)), *arguments], 2)
    assert codes == [code] * 2, said
    assert {0: "next: wukong ", 2: "wukong: error: --context 65"}.get(code, "stopped after step 2") in said


RUNNERS = """
from pathlib import Path
import torch
from wukong import processes
processes.join()
processes.all_reduce(torch.ones(3))
names = [task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")]
assert names.count("pt_gloo_runloop") == 1, names
processes.leave()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the names of threads are read from /proc")
def test_one_thread_runs_the_collectives_since_two_of_them_corrupt_the_heap() -> None:
    codes, said = run_programs([sys.executable, "-c", RUNNERS], 2)
    assert codes == [0, 0], said


@pytest.mark.slow
def test_sharded_programs_end_well_every_time(world: Path, tmp_path: Path) -> None:
    for attempt in range(8):
        arguments = command(world, "pretrain", tmp_path / str(attempt), parallel="fsdp")
        codes, said = run_programs([sys.executable, "-m", "wukong", *arguments], 2)
        assert codes == [0, 0], (attempt, said)


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
def test_torchrun_itself_ends_when_a_worker_is_killed(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "base"
    arguments = command(world, "pretrain", out, checkpoint_seconds=0, tokens=448 * 4000, device="cpu")
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "wukong"]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    torchrun = subprocess.Popen([*start, *arguments], env=environment, stderr=subprocess.PIPE, text=True)
    workers: list[int] = []
    try:
        deadline = time.monotonic() + SECONDS
        while not list_checkpoints(out / "checkpoints"):
            assert torchrun.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        workers = children(torchrun.pid)
        assert len(workers) == 2
        os.kill(workers[0], signal.SIGKILL)
        said = torchrun.communicate(timeout=SECONDS)[1]
        assert torchrun.returncode == 1
        assert f"Signal 9 (SIGKILL) received by PID {workers[0]}" in said
        # The other worker says so too, unless torchrun's SIGTERM reaches it before it has found the words.
        assert said.count("wukong: error") == said.count("another process of this job has ended") <= 1
        assert "going on" not in said
        assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    finally:
        for pid in [*([torchrun.pid] if torchrun.poll() is None else []), *workers]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        torchrun.wait()
