"""`wukong init`: writes a commented recipe to start from.

    wukong init my.yaml --based-on kitchen

It runs as it is. Comments above each step say what the step does and what to change for one's own data.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from pydantic import Field

from wukong.errors import Text, UsageError
from wukong.files import read_yaml, whole_text
from wukong.language import spoken
from wukong.options import Options, nearest
from wukong.recipes.shipped import SHIPPED
from wukong.registry import STAGES
from wukong.wide_text import narrowed, widened

YOURS = {
    "kitchen": "Only for the built-in world. With your own data, delete this step and replace each {run}/data/....",
    "tokenize": "Yours: `data`, the text to learn from, as in [my-texts/*.txt]; also .jsonl, .csv, .parquet, or a "
    "data set on the Hugging Face hub. `instructions` are the demonstrations of sft; without any, delete the line.",
    "pretrain": "Yours: `model`, its size (nano, micro, mini, gpt2), and `tokens`, how many to train on. To start from "
    "a finished model, delete tokenize and pretrain and name it at sft: `model: gpt2`.",
    "sft": "Yours: `data`, prompts with good answers: JSON lines with `prompt` and `response`, or other usual formats.",
    "sample": "Yours: `prompts`, a text file with one on each line, or JSON lines.",
    "label": "Yours: `judge`. `rubric` knows the built-in world only; others are lexicon, openai:MODEL (a language "
    "model behind an API) and module:function (your Python). For people's judgements, see `wukong studio --help`.",
    "reward": "Yours: `data`, comparisons of answers: those of the label step, or a file of people's.",
    "ppo": "Yours: `prompts`. To tune: `kl_coef` (a higher one keeps closer to the SFT model), `lr` and `episodes`.",
    "evaluate": "Yours: `prompts` that no other step uses, and `judge`, best one that training did not see.",
}
"""What to change in a step for one's own data."""
ORIGIN = "Written by `wukong init`: a copy of the recipe {name}, which runs as it is."
ABOUT = (
    "Steps run from top to bottom; {run} is the directory of the results. All steps are checked before the first one "
    "runs. `wukong tokenize --help` lists the options of tokenize and their defaults, and so on. A second step of the "
    "same stage has a suffix: reward_2. After a change to a finished step: --redo STEP."
)


class InitOptions(Options):
    """Write a commented recipe to start from; nothing is ever overwritten."""

    path: Path
    """The file to write, for example my.yaml."""
    based_on: str = Field("kitchen")
    """The recipe that it is a copy of (`wukong recipes` lists them)."""


def run(options: InitOptions) -> None:
    """Raises UsageError for an unknown recipe, an unusable name, or a file that exists."""
    if options.based_on not in SHIPPED:
        hint = nearest(options.based_on, SHIPPED) or f"; there are {', '.join(SHIPPED)}"
        raise UsageError(f"--based-on {options.based_on}: no such recipe{hint}")
    name = options.path.stem
    if options.path.suffix not in (".yaml", ".yml") or not re.fullmatch(r"\w[\w.-]*", name):
        raise UsageError(f"{options.path}: a name such as my.yaml is expected, which also names the run")
    text = _commented(options)
    try:
        with options.path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{options.path}: exists already and is left as it is; choose another name") from None
    except OSError as error:
        raise UsageError(f"{options.path}: cannot be written ({error.strerror})") from None
    print(spoken("{path}: written. Change what is yours in it, then: wukong run {path}", path=options.path))


def _commented(options: InitOptions) -> str:
    """The shipped recipe under another name, with comments that say what to change."""
    source = SHIPPED[options.based_on]
    content, _ = read_yaml(source)
    _, _, body = whole_text(source).partition("\nneeds: ")
    lines = [
        *_comment(spoken(ORIGIN, name=options.based_on), ""),
        "#",
        f"#   wukong run {options.path}",
        "#",
        *_comment(spoken("Needs: {what}.", what=Text(content["needs"])), ""),
        *_comment(spoken("Time: {what}.", what=Text(content["time"])), ""),
        "#",
        *_comment(spoken(ABOUT), ""),
        f"name: {options.path.stem}",
    ]
    for line in body.partition("\n")[2].splitlines():
        if (found := re.fullmatch(r"  ([a-z]+)(?:_\w+)?:", line)) and (stage := found[1]) in STAGES:
            step = line.strip().removesuffix(":")
            lines += _comment(spoken("{what}: {name}", what=step, name=Text(STAGES[stage].summary)))
            lines += _comment(spoken(YOURS[stage])) if stage in YOURS and stage == step else []
        lines.append(line)
    return "\n".join(lines) + "\n"


def _comment(text: str, indent: str = "  ") -> list[str]:
    before = f"{indent}# "
    lines = textwrap.wrap(
        widened(text),
        118,
        initial_indent=before,
        subsequent_indent=before,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [narrowed(line) for line in lines]
