"""Every stage and tool once: its name, its module and one line about it.

This is the only file that names modules of the package as strings. A module is imported when its command is chosen,
because many import torch, which takes seconds.
"""

from __future__ import annotations

import importlib
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from wukong import processes
from wukong.options import Options, StageOptions


@dataclass(frozen=True)
class Stage:
    """A stage or a tool."""

    module: str
    """It defines `run(options)`, whose annotation is the options class; a stage also `needs(options)`."""
    summary: str
    positional: str = ""
    """The option that is given without its name on the command line."""
    makes_file: bool = False
    """Whether its result is a file and not a directory."""

    def load(self) -> tuple[type[Options], Callable[[Any], None]]:
        """(the options class, the function that runs it)."""
        run = importlib.import_module(self.module).run
        options = typing.get_type_hints(run)["options"]
        if processes.world_size() > 1:
            from wukong.training.session import TrainOptions

            run = processes.distributed(run, trains=issubclass(options, TrainOptions))
        return options, run

    def needs(self, options: Any) -> Sequence[Any]:
        """What must be there before it can start (wukong.require). Raises UsageError for options at odds."""
        result: Sequence[Any] = importlib.import_module(self.module).needs(options)
        return result

    def check(self, options: StageOptions, planned: Any = None) -> None:
        """Raises UsageError or DataError for whatever would keep it from starting.

        Args:
            planned: what earlier steps will have made by then (wukong.require.Planned).
        """
        from wukong import require

        planned = planned or require.Planned()
        needs = [*self.needs(options), require.writable(options.out, not self.makes_file)]
        require.check_needs(needs, planned)

    @property
    def example(self) -> str:
        """The command in the module's docstring."""
        text = importlib.import_module(self.module).__doc__ or ""
        return "\n".join(line.removeprefix("    ") for line in text.splitlines() if line.startswith("    "))


STAGES = {
    "kitchen": Stage("wukong.kitchen.stage", "write the built-in world: corpus, demonstrations, prompts"),
    "tokenize": Stage("wukong.stages.tokenize", "text -> a tokenizer and token shards"),
    "pretrain": Stage("wukong.stages.pretrain", "token shards -> a base model that continues text"),
    "sft": Stage("wukong.stages.sft", "base model + demonstrations -> a model that answers"),
    "sample": Stage("wukong.stages.sample", "prompts + models -> several responses to each prompt", makes_file=True),
    "label": Stage("wukong.stages.label", "responses -> rankings, by simulated annotators", makes_file=True),
    "reward": Stage("wukong.stages.reward", "rankings -> a reward model"),
    "ppo": Stage("wukong.stages.online.ppo", "SFT model + reward model -> the policy people prefer"),
    "reinforce": Stage("wukong.stages.online.reinforce", "the same by REINFORCE, with a running or learned baseline"),
    "rloo": Stage("wukong.stages.online.rloo", "the same by REINFORCE with the leave-one-out baseline"),
    "grpo": Stage("wukong.stages.online.grpo", "the same by comparing each response with its group"),
    "bestofn": Stage("wukong.stages.online.bestofn", "the same by fine-tuning on the best of n responses"),
    "dpo": Stage("wukong.stages.direct.dpo", "SFT model + rankings -> a policy, without reward model (DPO, IPO)"),
    "kto": Stage("wukong.stages.direct.kto", "SFT model + thumbs up and down -> a policy"),
    "distill": Stage("wukong.stages.online.distill", "student + teacher + prompts -> a student that answers like it"),
    "evaluate": Stage("wukong.stages.evaluate", "models + unseen prompts -> win rates, KL, diversity"),
    "report": Stage("wukong.stages.report", "a run directory -> one self-contained HTML page", makes_file=True),
}
"""What a recipe's steps can be, in pipeline order."""

RUN = Stage("wukong.runner", "all steps of a recipe; a finished one is skipped, an interrupted one resumed")
"""`wukong run`, which also takes the options of every step."""

TOOLS = {
    "recipes": Stage("wukong.recipes.listing", "the recipes that come with the package"),
    "init": Stage("wukong.recipes.init", "write a commented recipe to start from", positional="path"),
    "doctor": Stage(
        "wukong.studies.doctor.command", "what is wrong with a run, or with this machine", positional="run"
    ),
    "import": Stage("wukong.gguf_import.command", "a GGUF file -> a model directory", positional="file"),
    "chat": Stage("wukong.chat", "talk to a model, or to several, in the terminal", positional="models"),
    "serve": Stage("wukong.serve.command", "models behind an OpenAI-compatible HTTP API", positional="models"),
    "accept": Stage("wukong.accept", "keep a result that was changed by hand", positional="result"),
    "merge": Stage("wukong.merge", "an adapter and its base model -> one plain model", positional="adapter"),
    "labelstudio": Stage(
        "wukong.feedback.labelstudio.command", "compare answers in Label Studio: there and back", positional="action"
    ),
    "reward-report": Stage(
        "wukong.studies.reward_report", "is a reward model any good, and would more labels help", "reward_model"
    ),
    "compare": Stage("wukong.studies.compare", "models or their answers -> who is better, in words", "models"),
    "plan": Stage("wukong.plan", "what a recipe costs: parameters, memory, arithmetic, time", "recipe"),
    "frontier": Stage("wukong.studies.frontier", "gold and proxy reward over KL: did RL gain, or hack", "runs"),
    "studio": Stage("wukong.web.command", "serve the web application where people label"),
}

PUBLIC = {
    **dict.fromkeys(("Policy", "Reward", "load_policy", "load_reward"), "wukong.api"),
    **dict.fromkeys(("as_trl", "read_comparisons", "read_instructions", "read_prompts", "read_text"), "wukong.data"),
    "load_inspector": "wukong.inspection",
    "run": "wukong.runner",
}
"""The names that `wukong` exports, and the modules that define them."""


def public(name: str) -> Any:
    """The object that the package exports under this name."""
    return getattr(importlib.import_module(PUBLIC[name]), name)
