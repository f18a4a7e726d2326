"""Breaks runs on purpose, one thing each, and asks the doctor what is wrong with them.

    python benchmarks/learning/pathologies.py runs/kitchen --seeds 100 --out docs/results/doctor.md

From a finished kitchen run come the SFT model, the reward model, answers, labels, prompts and the options of its steps;
of each broken run exactly one thing differs from that recipe (PPO has fewer iterations, so that a seed takes minutes).
Each is diagnosed twice: as it is, and with options, commands and the curves of `lr` and `kl_coef` removed from its
records. What is made lies in RUN/pathologies/seed-N and is not made twice. --healthy names finished runs that should
have no red finding.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))  # the rewards below, as pathologies:words

from shared.command_line import new_parser, publish, run_argument, this_command
from shared.finished_run import recipe_steps, run_stage
from shared.machine import machine
from shared.table import markdown_table

from wukong.errors import RunError
from wukong.records import Comparison, Conversation, Message, Prompt, Ranking, prompt_id, read_records, write_records
from wukong.report.diagnosis.diagnose import diagnose
from wukong.report.diagnosis.findings import TITLES, Diagnosis
from wukong.report.diagnosis.records import read_records_of
from wukong.seeds import permutation

FAST = {"batch_size": 32, "minibatch_size": 16, "lr": 2.4e-4, "temperature": 1.0}
"""Of PPO, in place of the recipe's: smaller batches, a higher learning rate and more exploration, so that a run takes a
minute."""
SHORT, LONG, LONGEST = 12, 24, 36
"""Iterations of PPO."""
LABELLED = 250
"""Prompts with labels, of those of the recipe, that the broken reward models learn from."""
ENDLESS = 600
"""Demonstrations without an end."""


# --------------------------------------------------------------------------------------------------- broken judges


def words(prompts: Sequence[Sequence[Message]], texts: Sequence[str]) -> list[float]:
    """A reward for length: the number of words."""
    return [float(len(text.split())) for text in texts]


def phrase(prompts: Sequence[Sequence[Message]], texts: Sequence[str]) -> list[float]:
    """A reward for one phrase, each time it is said."""
    return [float(text.count("Enjoy!")) for text in texts]


# -------------------------------------------------------------------------------------------------------- broken runs


@dataclass(frozen=True)
class Base:
    """What the broken runs start from: the options of a finished run's steps, and the seed of the broken ones."""

    steps: dict[str, dict[str, Any]]
    seed: int

    def ppo(self, out: Path, iterations: int = SHORT, **changes: Any) -> None:
        own = self.steps["ppo"] | FAST | {"tensorboard": False, "seed": self.seed}
        own |= {"episodes": iterations * FAST["batch_size"]}
        run_stage("ppo", own | {"out": str(out / "policy")} | changes)

    def reward(self, out: Path, data: Path, **changes: Any) -> None:
        own = self.steps["reward"] | {"data": [str(data)], "tensorboard": False, "seed": self.seed}
        run_stage("reward", own | {"out": str(out / "reward")} | changes)

    def label(self, out: Path, **changes: Any) -> Path:
        own = self.steps["label"] | {"shape": "pairs", "seed": self.seed, "out": str(out / "labels.jsonl")}
        run_stage("label", own | changes)
        return out / "labels.jsonl"

    def sft(self, out: Path, data: Path, **changes: Any) -> None:
        own = self.steps["sft"] | {"data": [str(data)], "tensorboard": False, "seed": self.seed}
        run_stage("sft", own | {"out": str(out / "sft")} | changes)

    def some_rankings(self, out: Path, count: int) -> Path:
        """The recipe's rankings of so many prompts."""
        file = out / "some-rankings.jsonl"
        records = read_records(self.steps["label"]["out"], Ranking)
        if not file.exists():
            write_records(file, [records[i] for i in permutation(len(records), self.seed)[:count]])
        return file


def healthy(base: Base, out: Path) -> None:
    """The control: nothing is broken."""
    base.ppo(out, LONG)


def lr_too_high(base: Base, out: Path) -> None:
    base.ppo(out, lr=8 * FAST["lr"])


def lr_too_low(base: Base, out: Path) -> None:
    base.ppo(out, lr=1e-7)


def kl_coefficient_too_high(base: Base, out: Path) -> None:
    base.ppo(out, kl_coef=5.0)


def kl_runaway(base: Base, out: Path) -> None:
    base.ppo(out, LONGEST, kl_coef=0.0)


def length_hacking(base: Base, out: Path) -> None:
    base.ppo(out, LONG, rewards=["0.1*pathologies:words"])


def repetition(base: Base, out: Path) -> None:
    base.ppo(out, LONG, rewards=["3*pathologies:phrase"])


def reward_at_chance(base: Base, out: Path) -> None:
    """Each pair is labelled by the toss of a coin."""
    file = out / "some-labels.jsonl"
    labels = read_records(base.label(out, error_rate=0.5), Comparison)
    if not file.exists():
        known = sorted({prompt_id(one.prompt) for one in labels})
        some = {known[i] for i in permutation(len(known), base.seed)[:LABELLED]}
        write_records(file, (one for one in labels if prompt_id(one.prompt) in some))
    base.reward(out, file)


def reward_blind(base: Base, out: Path) -> None:
    base.reward(out, base.some_rankings(out, LABELLED), off_prompt=0)


def value_model(base: Base, out: Path) -> None:
    base.ppo(out, value_coef=0.0)


def never_ends(base: Base, out: Path) -> None:
    """Demonstrations that run on beyond the context, so that no answer's end is ever seen."""
    file = out / "demonstrations.jsonl"
    if not file.exists():
        records = read_records(base.steps["sft"]["data"][0], Conversation)
        order = permutation(len(records), base.seed)
        write_records(file, (endless(records[i]) for i in order[:ENDLESS]))
    base.sft(out, file, epochs=1)
    judging = base.steps["evaluate"] | {"models": [f"sft={out / 'sft'}"], "raw": [], "text": None, "limit": 60}
    run_stage("evaluate", judging | {"out": str(out / "evaluation"), "reward_model": None})


def endless(demonstration: Conversation) -> Conversation:
    turns = [
        Message(role=turn.role, content=" ".join([turn.content] * 60) if turn.role == "assistant" else turn.content)
        for turn in demonstration.messages
    ]
    return Conversation(messages=turns, source=demonstration.source)


def sampler_mismatch(base: Base, out: Path) -> None:
    """The sampler's copy of the weights has only 16 levels a matrix, as an engine that rounds to 4 bits."""
    from wukong.stages.online import rollouts

    copy = rollouts.inference_copy

    def rounded(model: Any, compute: Any) -> Any:
        import torch

        kept = {name: value.clone() for name, value in model.state_dict().items()}
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    size = parameter.abs().max() / 7.5
                    parameter.copy_((parameter / size).round() * size)
        found = copy(model, compute)
        model.load_state_dict(kept)
        return found

    with patch.object(rollouts, "inference_copy", rounded):
        base.ppo(out)


def too_little(base: Base, out: Path) -> None:
    base.reward(out, base.some_rankings(out, 12))


def noisy_labels(base: Base, out: Path) -> None:
    base.label(out, error_rate=0.3)


def overlap(base: Base, out: Path) -> None:
    """A third of the prompts of the evaluation are those that the policy was trained on."""
    judging, policy = base.steps["evaluate"], base.steps["ppo"]
    file = out / "prompts-mixed.jsonl"
    test, train = (read_records(source[0], Prompt) for source in (judging["prompts"], policy["prompts"]))
    order = permutation(len(train), base.seed)
    if not file.exists():
        write_records(file, [*test[:40], *(train[i] for i in order[:20])])
    models = [f"sft={policy['model']}", f"policy={policy['out']}"]
    changes = {"prompts": [str(file)], "models": models, "raw": [], "text": None, "reward_model": None}
    run_stage("evaluate", judging | changes | {"out": str(out / "evaluation")})


def overfitted_sft(base: Base, out: Path) -> None:
    """A twentieth of the demonstrations, and as many steps."""
    file = out / "demonstrations.jsonl"
    records = read_records(base.steps["sft"]["data"][0], Conversation)
    if not file.exists():
        write_records(file, [records[i] for i in permutation(len(records), base.seed)[:130]])
    base.sft(out, file, epochs=40, eval_every=0, valid_fraction=0.2)


PATHOLOGIES: dict[str, Callable[[Base, Path], None]] = {
    "lr-too-high": lr_too_high,
    "lr-too-low": lr_too_low,
    "kl-coefficient-too-high": kl_coefficient_too_high,
    "kl-runaway": kl_runaway,
    "length-hacking": length_hacking,
    "repetition": repetition,
    "reward-at-chance": reward_at_chance,
    "reward-blind": reward_blind,
    "value-model": value_model,
    "never-ends": never_ends,
    "sampler-mismatch": sampler_mismatch,
    "too-little": too_little,
    "noisy-labels": noisy_labels,
    "overlap": overlap,
    "overfitted-sft": overfitted_sft,
}
"""What is broken, by the code of the finding that should name it."""


# ---------------------------------------------------------------------------------------------------------- diagnosing


def without_options(run: Path, place: Path) -> Path:
    """A copy of a run's records without options, commands, recipe, and the curves of options."""
    copy = place / run.name
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("*.safetensors", "tensorboard", "checkpoints", ".*"))
    for file in [*copy.rglob("*provenance.json"), *copy.rglob("options.json")]:
        record = json.loads(file.read_text())
        home = (run / file.relative_to(copy)).parent / record["run"]  # inputs outside the copy stay where they are
        file.write_text(json.dumps(record | {"options": {}, "command": [], "run": str(home.resolve())}))
    for file in copy.rglob("recipe.yaml"):
        file.unlink()
    for file in copy.rglob("metrics.jsonl"):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        kept = [{name: value for name, value in line.items() if name not in ("lr", "kl_coef")} for line in lines]
        file.write_text("".join(json.dumps(line) + "\n" for line in kept))
    return copy


def both(run: Path) -> tuple[Diagnosis, Diagnosis]:
    """The diagnosis of a run, and that without its options."""
    with tempfile.TemporaryDirectory() as place:
        return diagnose(read_records_of(run)), diagnose(read_records_of(without_options(run, Path(place))))


def named(code: str, diagnosis: Diagnosis) -> dict[str, Any]:
    """Whether a diagnosis names it, in which place, how severe and how sure, and what else it says."""
    codes = [one.code for one in diagnosis.findings]
    found = next((one for one in diagnosis.findings if one.code == code), None)
    return {
        "named": found is not None,
        "rank": codes.index(code) + 1 if found else None,
        "severity": found.severity if found else None,
        "confidence": found.confidence if found else None,
        "others": [f"{one.code} ({one.severity})" for one in diagnosis.findings if one.code != code],
    }


def cell(one: dict[str, Any]) -> str:
    if not one["named"]:
        return "no"
    return f"{one['severity']}, {one['confidence']}" + (f", place {one['rank']}" if one["rank"] > 1 else "")


def page(report: dict[str, Any], command: str) -> str:
    """docs/results/doctor.md."""
    lines = [
        "# The doctor on broken runs",
        "",
        "What `wukong doctor` says of runs that were broken on purpose, one thing each, and of healthy ones.",
        "",
        f"`{command}`",
        "",
        f"{machine()}; {time.strftime('%Y-%m-%d')}. Each run differs from the recipe in one thing; "
        "`benchmarks/learning/pathologies.py` says in which. The numbers are in `data/doctor.json` beside this page.",
    ]
    for seed, rows in report["broken"].items():
        with_, without = (sum(row[key]["named"] for row in rows.values()) for key in ("with", "without"))
        lines += ["", f"## Seed {seed}", "", f"Named: {with_} of {len(rows)}; without options: {without}.", ""]
        columns = ["pathology", "named: severity, confidence", "without options", "what else is said", "seconds"]
        table = [
            [TITLES[code], cell(row["with"]), cell(row["without"]), ", ".join(row["with"]["others"]) or "–",
             f"{row['seconds']:.0f}"]
            for code, row in rows.items()
        ]  # fmt: skip
        lines.append(markdown_table(columns, table, left=4))
    if report["healthy"]:
        lines += ["", "## Healthy runs", ""]
        table = [
            [name, len([one for one in found if "(red)" in one]), ", ".join(found) or "–"]
            for name, found in report["healthy"].items()
        ]
        lines.append(markdown_table(["run", "red findings", "all findings"], table, left=3))
    return "\n".join(lines) + "\n"


def made(run: Callable[[Base, Path], None], base: Base, out: Path) -> float:
    """Makes a run unless it is there. Returns the seconds that it took now."""
    out.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    if not (out / "stopped.txt").exists():
        try:
            run(base, out)
        except RunError as error:  # a run that a guard stopped is a broken run too
            (out / "stopped.txt").write_text(f"{error}\n")
    return time.monotonic() - begin


def all_findings(run: Path) -> list[str]:
    return [f"{one.step}: {one.code} ({one.severity})" for one in diagnose(read_records_of(run)).findings]


def main() -> None:
    parser = new_parser(__doc__)
    run_argument(parser)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    everything = [*PATHOLOGIES, "healthy"]
    parser.add_argument("--only", nargs="+", choices=everything, default=everything)
    parser.add_argument("--healthy", type=Path, nargs="*", default=[], help="finished runs, expected without red")
    parser.add_argument("--out", type=Path, help="write the page there; the numbers go to data/doctor.json beside it")
    arguments = parser.parse_args()
    report: dict[str, Any] = {"broken": {}, "healthy": {}}
    for seed in arguments.seeds:
        base, place = Base(recipe_steps(arguments.run), seed), arguments.run / "pathologies" / f"seed-{seed}"
        rows = report["broken"][seed] = {}
        for code in (one for one in PATHOLOGIES if one in arguments.only):
            seconds = made(PATHOLOGIES[code], base, place / code)
            as_is, bare = both(place / code)
            rows[code] = {"with": named(code, as_is), "without": named(code, bare), "seconds": seconds}
            print(
                f"{code}: {cell(rows[code]['with'])} | {cell(rows[code]['without'])} | {rows[code]['with']['others']}"
            )
        if "healthy" in arguments.only:
            made(healthy, base, place / "healthy")
            report["healthy"][f"PPO as in the broken runs, nothing broken, seed {seed}"] = all_findings(
                place / "healthy"
            )
    for run in arguments.healthy:
        report["healthy"][run.name] = all_findings(run)
    publish(page(report, this_command()), arguments.out)
    if arguments.out:
        file = arguments.out.parent / "data" / "doctor.json"
        file.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
