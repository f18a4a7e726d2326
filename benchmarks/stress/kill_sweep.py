"""kill -9 at random moments of every stage, then the same command again: are the results the same, byte for byte?

    python benchmarks/stress/kill_sweep.py --kills 100 --seed 0 --out /tmp/kill-sweep

Runs kill_sweep.yaml, which has every stage and algorithm, twice: once undisturbed, and once with kills. Each stage is
killed equally often: the command is started up to that stage, the line that announces the stage is waited for
(for one kill in six it is not, so that the checks at the start and earlier steps are hit as well), and after a random
part of the time that the stage took alone SIGKILL goes to the whole process group. A stage that was done sooner is put
back and begins anew. Then the same command runs to its end.

Every file is compared. What holds times by design is compared without them: `seconds` and `finished` in provenance,
rates and durations in metrics.jsonl. report.html, which prints times, and events.jsonl, a log of what happened and no
result, only have to be there. Nothing else may be left: no temporary file, lock or checkpoint.

Exit code 0: all equal. 102 kills took half an hour on two cores that were busy otherwise.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # sums of two threads differ in their last bits
os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.command_line import new_parser

import wukong
from wukong.errors import WukongError
from wukong.places import EVENTS
from wukong.recipe import load_recipe

RECIPE = Path(__file__).with_suffix(".yaml")
AT_ANY_MOMENT = 6
"""One kill in so many does not wait for its stage."""

# Importing torch takes longer than most of these stages: a server that has done so forks a process for each command,
# so that the kills meet the work.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["wukong.stages.online.ppo", "wukong.stages.evaluate", "wukong.stages.label"])


def _command(directory: Path, recipe: Path, step: str) -> None:
    """The recipe up to and with a step, in a working directory of its own (so that two runs have the same paths), in a
    process group of its own; what it says goes to `said`."""
    os.setsid()
    os.chdir(directory)
    said = os.open("said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    try:
        wukong.run(recipe, "run", until=step)
    except WukongError as error:
        raise SystemExit(str(error)) from None


class Sweep:
    """Two runs of one recipe, of which one is killed.

    Args:
        out: where both lie: `once/run` and `killed/run`.
    """

    def __init__(self, out: Path, recipe: Path = RECIPE, seed: int = 0) -> None:
        self.recipe, self.rng = recipe.absolute(), random.Random(seed)
        self.once, self.killed, self.before = (out / name for name in ("once", "killed", "before"))
        for directory in (self.once, self.killed):
            directory.mkdir(parents=True)

    def _start(self, directory: Path, step: str) -> multiprocessing.process.BaseProcess:
        (directory / "said").write_text("")
        process = processes.Process(target=_command, args=(directory, self.recipe, step))
        process.start()
        return process

    def _announced(self, process: multiprocessing.process.BaseProcess, directory: Path, step: str) -> bool:
        """Waits until the stage begins; False where the process ended before."""
        while f"] {step} -> " not in (directory / "said").read_text():
            process.join(0.002)
            if process.exitcode is not None:
                return False
        return True

    def to_the_end(self, directory: Path, step: str) -> tuple[float, float]:
        """Runs up to and with a step. Returns the seconds of the stage, and those of the whole command."""
        begin = time.monotonic()
        process = self._start(directory, step)
        self._announced(process, directory, step)
        at = time.monotonic()
        process.join()
        if process.exitcode != 0:
            raise SystemExit(f"{directory}: {step} ended with {process.exitcode}:\n{(directory / 'said').read_text()}")
        return time.monotonic() - at, time.monotonic() - begin

    def _kill(self, step: str, seconds: float, wait: bool) -> bool:
        """Starts the command and kills it; False when it was done sooner."""
        process = self._start(self.killed, step)
        if wait and not self._announced(process, self.killed, step):
            raise SystemExit(f"{step} did not begin:\n{(self.killed / 'said').read_text()}")
        process.join(seconds)
        if process.exitcode is not None:
            return False
        os.killpg(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
        process.join()
        return True

    def stage(self, step: str, kills: int) -> int:
        """Runs a stage once alone, and once with so many kills. Returns how often the kill came too late."""
        stage_seconds, command_seconds = self.to_the_end(self.once, step)
        shutil.copytree(self.killed, self.before)
        done = late = 0
        while done < kills:
            wait = done % AT_ANY_MOMENT != AT_ANY_MOMENT - 1
            if self._kill(step, self.rng.uniform(0, stage_seconds if wait else command_seconds), wait):
                done += 1
                continue
            late += 1
            shutil.rmtree(self.killed)
            shutil.copytree(self.before, self.killed)
        self.to_the_end(self.killed, step)
        shutil.rmtree(self.before)
        return late

    def differences(self) -> list[str]:
        """The files of the two runs that are not equal, or are in one of them only; and leftovers."""
        runs = [self.once / "run", self.killed / "run"]
        names = [{str(f.relative_to(run)) for f in run.rglob("*") if f.is_file()} for run in runs]
        found = sorted(names[0] ^ names[1])
        for name in sorted(names[0] & names[1]):
            if name not in ("report.html", EVENTS) and _content(runs[0] / name) != _content(runs[1] / name):
                found.append(name)
        hidden = (f.relative_to(runs[1]) for f in runs[1].rglob(".*"))
        return [*found, *(f"{name} (left over)" for name in hidden)]


def _content(file: Path) -> object:
    """What must be equal in two runs."""
    if file.name.endswith("provenance.json"):
        record = json.loads(file.read_text())
        return {name: value for name, value in record.items() if name not in ("seconds", "finished")}
    if file.name == "metrics.jsonl":
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        return [{k: v for k, v in line.items() if not k.endswith(("_seconds", "per_second"))} for line in lines]
    return file.read_bytes()


def main_sweep(arguments: Sequence[str] | None = None) -> int:
    parser = new_parser(__doc__)
    parser.add_argument("--kills", type=int, default=100, help="how many in all, at least; each stage gets as many")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, required=True, help="a new directory for both runs")
    options = parser.parse_args(arguments)
    if options.out.exists():
        parser.error(f"--out {options.out}: exists already")
    steps = list(load_recipe(RECIPE).recipe.steps)
    each = -(-options.kills // len(steps))
    sweep, begin = Sweep(options.out.absolute(), seed=options.seed), time.monotonic()
    for step in steps:
        late = sweep.stage(step, each)
        print(f"{step:<12}{each} kills ({late} more came after its end), {time.monotonic() - begin:.0f} s", flush=True)
    different = sweep.differences()
    files = sum(1 for file in (options.out / "once" / "run").rglob("*") if file.is_file())
    verdict = "all equal" if not different else f"{len(different)} differ: {', '.join(different)}"
    print(f"{each * len(steps)} kills in {len(steps)} steps, {files} files: {verdict}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main_sweep())
