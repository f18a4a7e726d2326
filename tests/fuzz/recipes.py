"""Malformed recipes and records: valid ones with one to three faults, loaded, resolved and checked; nothing is trained.

A recipe is one of the shipped ones, shortened and with other numbers, and mutated as text or as a tree. It is either
accepted (every step could start) or refused with one line (a WukongError). A record is a JSON file of a run directory,
mutated and read as the report and the stages read it. Anything else, a case of more than ten seconds, or a process that
grows by a gigabyte is a fault of ours and raises.

    python tests/fuzz/recipes.py 2500 0
"""

from __future__ import annotations

import copy
import gzip
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import datasets  # noqa: F401  (importing it is no part of a case)
import openai  # noqa: F401
import yaml

from wukong.console import console
from wukong.errors import JOINERS, WukongError
from wukong.kitchen.stage import KitchenOptions
from wukong.kitchen.stage import run as make_kitchen
from wukong.provenance import read_record, stage_state, verify
from wukong.recipe import check_steps, load_recipe, resolve
from wukong.recipes.shipped import SHIPPED
from wukong.registry import STAGES
from wukong.report.contents import read_run
from wukong.training.metrics import read_metrics

SECONDS, GROWTH = 10.0, 1 << 30
EVERY_RECORD = 4
"""One case in so many is a record."""

ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    3.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    10**6,
    2**31,
    2**63,
    10**30,
    "",
    " ",
    "x",
    "0",
    "null",
    "\ud800",
    "\x00",
    "a\nb",
    "é好🍕",
    "x" * 5000,
    "../../etc/passwd",
    "/",
    "/dev/null",
    "/proc/self",
    "{run}",
    "{run}/",
    "{run}/nothing",
    "{here}",
    "${HOME}",
    "${NOT_SET}",
    "${}",
    "a=b=c",
    "=",
    "*",
    "~",
    "~nobody/x",
    "2*",
    "nan*lexicon",
    "no.such:thing",
    "openai:x",
    "gpt2",
    [],
    [None],
    [1, 2],
    ["a", "b"],
    [[]],
    {},
    {"a": 1},
    {1: 2},
    b"\xff",
)
FRAGMENTS = (
    "\t",
    "\x07",
    "\x85",
    "\u2028",
    "\ufeff",
    "'",
    '"',
    "{",
    "}",
    "[",
    "]",
    ": ",
    "- ",
    "#",
    "&a ",
    "*a ",
    "!!",
    "|\n",
    ">\n",
    "%YAML 9.9\n",
    "---\n",
    "...\n",
    "? ",
    "<<: ",
    "@",
    "`",
    "\\",
    "é",
    "\U0001f355",
)
ODD_KEYS = (
    "1",
    "1.5",
    "true",
    "null",
    "2024-01-01",
    "[a, b]",
    "{a: b}",
    "? [x]\n ",
    "~",
    "'<<'",
    "0x1f",
    "!!binary aGk=",
)
ODD_SCALARS = (
    ".inf",
    "-.inf",
    ".nan",
    "1e999",
    "9" * 5000,
    "2024-13-45",
    "2024-01-01",
    "1:2:3",
    ":".join(["9"] * 300),
    "0o777",
    "0x",
    "1_000_",
    "!!python/object/apply:os.getcwd []",
    "!!int x",
    "!!float []",
    "!!set {a}",
    "!!binary '*'",
    "!!timestamp x",
    "!!omap [a: 1]",
    "!!null x",
    "!x y",
    "*nothing",
    "yes",
    "=",
    "<<",
)

# --------------------------------------------------------------------------------------------------- of a recipe's text

Text = Callable[[random.Random, str], str]


def _line(rng: random.Random, lines: list[str]) -> int:
    return rng.randrange(max(1, len(lines)))


def drop_line(rng: random.Random, text: str) -> str:
    lines = text.splitlines(True)
    if not lines:
        return text
    del lines[_line(rng, lines)]
    return "".join(lines)


def repeat_line(rng: random.Random, text: str) -> str:
    lines = text.splitlines(True)
    if not lines:
        return text
    at = _line(rng, lines)
    return "".join([*lines[: at + 1], *lines[at:]])


def swap_lines(rng: random.Random, text: str) -> str:
    lines = text.splitlines(True)
    if not lines:
        return text
    a, b = _line(rng, lines), _line(rng, lines)
    lines[a], lines[b] = lines[b], lines[a]
    return "".join(lines)


def indent(rng: random.Random, text: str) -> str:
    lines = text.splitlines(True)
    if not lines:
        return text
    at = _line(rng, lines)
    lines[at] = rng.choice([" ", "  ", "\t", " " * 40]) + lines[at] if rng.random() < 0.6 else lines[at].lstrip()
    return "".join(lines)


def drop_characters(rng: random.Random, text: str) -> str:
    at = rng.randrange(len(text) + 1)
    return text[:at] + text[at + rng.randint(1, 5) :]


def put_fragment(rng: random.Random, text: str) -> str:
    at = rng.randrange(len(text) + 1)
    return text[:at] + rng.choice(FRAGMENTS) + text[at:]


def cut_off(rng: random.Random, text: str) -> str:
    return text[: rng.randrange(len(text) + 1)]


def odd_scalar(rng: random.Random, text: str) -> str:
    found = list(re.finditer(r": ([^\n{}\[\]]+)$", text, re.M))
    if not found:
        return text
    one = rng.choice(found)
    return text[: one.start(1)] + rng.choice(ODD_SCALARS) + text[one.end(1) :]


def odd_key(rng: random.Random, text: str) -> str:
    found = list(re.finditer(r"^( *)(\w+):", text, re.M))
    if not found:
        return text
    one = rng.choice(found)
    return text[: one.start(2)] + rng.choice(ODD_KEYS) + text[one.end(2) :]


def laughs(rng: random.Random, text: str) -> str:
    depth, kind = rng.randint(3, 30), rng.choice(["[{}]", "{{{}}}"])
    lines = ["a0: &a0 [x, x]"]
    for i in range(1, depth):
        inside = ", ".join(f"k{k}: *a{i - 1}" if kind[0] == "{" else f"*a{i - 1}" for k in range(9))
        lines.append(f"a{i}: &a{i} " + kind.format(inside))
    lines.append(rng.choice([f"seed: *a{depth - 1}", f"<<: *a{depth - 1}", "me: &me [*me]", ""]))
    return text + "\n" + "\n".join(lines) + "\n"


def deep(rng: random.Random, text: str) -> str:
    n = rng.choice([30, 70, 500, 20_000])
    return text + f"\ndeep: {rng.choice(['[', '{a: '])[:] * n}\n"


def aliases(rng: random.Random, text: str) -> str:
    found = list(re.finditer(r"^  (\w+):\n", text, re.M))
    if len(found) < 2:
        return text
    one, other = sorted(rng.sample(found, 2), key=lambda m: m.start())
    text = text[: other.end()] + "    <<: *step\n" + text[other.end() :]
    return text[: one.end() - 1] + " &step\n" + text[one.end() :]


TEXT: dict[str, Text] = {
    f.__name__: f
    for f in (
        drop_line,
        repeat_line,
        swap_lines,
        indent,
        drop_characters,
        put_fragment,
        cut_off,
        odd_scalar,
        odd_key,
        laughs,
        deep,
        aliases,
    )
}

# --------------------------------------------------------------------------------------------------- of a recipe's tree

Tree = Callable[[random.Random, dict[str, Any]], None]


def _option(rng: random.Random, recipe: dict[str, Any]) -> tuple[dict[str, Any], str] | None:
    steps = [step for step in recipe["steps"].values() if isinstance(step, dict) and step]
    if not steps:
        return None
    step = rng.choice(steps)
    return step, rng.choice(list(step))


def odd_value(rng: random.Random, recipe: dict[str, Any]) -> None:
    if found := _option(rng, recipe):
        found[0][found[1]] = copy.deepcopy(rng.choice(ODD))


def odd_item(rng: random.Random, recipe: dict[str, Any]) -> None:
    for _ in range(20):
        if (found := _option(rng, recipe)) and isinstance(items := found[0][found[1]], list):
            items.insert(rng.randint(0, len(items)), copy.deepcopy(rng.choice(ODD)))
            return


def drop_option(rng: random.Random, recipe: dict[str, Any]) -> None:
    if found := _option(rng, recipe):
        del found[0][found[1]]


def rename_option(rng: random.Random, recipe: dict[str, Any]) -> None:
    if found := _option(rng, recipe):
        step, name = found
        step[rng.choice([name[:-1] or "x", name.upper(), name.replace("_", "-"), "lr", "judge", "data"])] = step.pop(
            name
        )


def wrap_value(rng: random.Random, recipe: dict[str, Any]) -> None:
    if found := _option(rng, recipe):
        step, name = found
        step[name] = rng.choice([[step[name]], {"value": step[name]}, str(step[name]), [step[name], step[name]]])


def swap_values(rng: random.Random, recipe: dict[str, Any]) -> None:
    a, b = _option(rng, recipe), _option(rng, recipe)
    if a and b:
        a[0][a[1]], b[0][b[1]] = b[0][b[1]], a[0][a[1]]


def rename_step(rng: random.Random, recipe: dict[str, Any]) -> None:
    steps = list(recipe["steps"].items())
    at = rng.randrange(len(steps))
    name = rng.choice(["", "sft", "nothing", "ppo_2", "dpo", "kto", "label_x", "Reward", "a b", "evaluate_", "x" * 400])
    steps[at] = name, steps[at][1]
    recipe["steps"] = dict(steps)


def reorder_steps(rng: random.Random, recipe: dict[str, Any]) -> None:
    steps = list(recipe["steps"].items())
    rng.shuffle(steps)
    recipe["steps"] = dict(steps)


def drop_step(rng: random.Random, recipe: dict[str, Any]) -> None:
    if len(recipe["steps"]) > 1:
        del recipe["steps"][rng.choice(list(recipe["steps"]))]


def odd_head(rng: random.Random, recipe: dict[str, Any]) -> None:
    recipe[rng.choice(["name", "seed", "run_dir", "called_from", "steps", "nmae"])] = copy.deepcopy(rng.choice(ODD))


def wrong_result(rng: random.Random, recipe: dict[str, Any]) -> None:
    """Another step's result where this one needs its own kind: a reward model as policy, rankings for KTO."""
    outs = [step["out"] for step in recipe["steps"].values() if isinstance(step, dict) and "out" in step]
    found = _option(rng, recipe)
    if outs and found:
        found[0][found[1]] = rng.choice(outs)


def number_out_of_range(rng: random.Random, recipe: dict[str, Any]) -> None:
    for _ in range(20):
        if (found := _option(rng, recipe)) and isinstance(found[0][found[1]], int | float):
            factor = rng.choice([-1, 0, 1e-9, 7, 1e9, 1e300])
            found[0][found[1]] = type(found[0][found[1]])(found[0][found[1]] * factor)
            return


TREE: dict[str, Tree] = {
    f.__name__: f
    for f in (
        odd_value,
        odd_item,
        drop_option,
        rename_option,
        wrap_value,
        swap_values,
        rename_step,
        reorder_steps,
        drop_step,
        odd_head,
        wrong_result,
        number_out_of_range,
    )
}

# -------------------------------------------------------------------------------------------------------- valid recipes


def make_data(directory: Path) -> None:
    """What the shipped recipes expect below $WUKONG_DATA, a line of each."""
    pair = {"chosen": "\n\nHuman: Hi\n\nAssistant: Good day.", "rejected": "\n\nHuman: Hi\n\nAssistant: What?"}
    taught = {"instruction": "Say hi.", "input": "", "output": "Hi.", "chosen": "Hi, dear.", "rejected": "Hi, you."}
    for recipe in SHIPPED.values():
        for name in re.findall(r"\$\{WUKONG_DATA\}/([\w./-]+)", recipe.read_text()):
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            line = {"text": "A story. The end."} if "hh-rlhf" not in name else pair
            text = json.dumps([taught]) if name.endswith(".json") else json.dumps(line) + "\n"
            text = text if ".json" in name else "a fine film\nnot a fine film\n"
            path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())


@cache
def _shipped() -> list[dict[str, Any]]:
    return [yaml.safe_load(path.read_text()) for path in SHIPPED.values() if path.name != "hh.yaml"]


def valid(rng: random.Random) -> dict[str, Any]:
    """A shipped recipe (but for the one that begins at the hub) up to some step, with other numbers."""
    recipe = copy.deepcopy(rng.choice(_shipped()))
    steps = list(recipe["steps"].items())
    recipe["steps"] = dict(steps[: rng.randint(1, len(steps))])
    recipe["seed"] = rng.randint(0, 100)
    return recipe


def recipe_case(rng: random.Random, directory: Path) -> Path:
    path, recipe = directory / "recipe.yaml", valid(rng)
    kinds = [rng.choice([*TEXT, *TREE]) for _ in range(rng.choice([0, 1, 1, 1, 2, 3]))]
    for kind in kinds:
        if kind in TREE and isinstance(recipe.get("steps"), dict) and recipe["steps"]:
            TREE[kind](rng, recipe)
    text = yaml.dump(recipe, sort_keys=False, allow_unicode=True)
    for kind in kinds:
        if kind in TEXT:
            text = TEXT[kind](rng, text)
    raw = bytearray(text.encode("utf-8", "surrogatepass"))
    if raw and rng.random() < 0.05:
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    path.write_bytes(raw)
    return path


def check_recipe(path: Path, run_dir: Path, past: list[int]) -> None:
    """`past` gets an item once the file was read as a recipe."""
    recipe = load_recipe(path)
    past.append(1)
    _, steps = resolve(recipe, run_dir)
    check_steps(steps, [])


# -------------------------------------------------------------------------------------------------------------- records


def make_run(directory: Path) -> None:
    """A run directory with every kind of JSON file that is read again."""
    make_kitchen(KitchenOptions(out=directory / "data", megabytes=0.01))
    options = {"out": "{run}/base", "model": "{run}/sft", "seed": 0}
    begun = {"stage": "pretrain", "run": "..", "options": options, "inputs": {"{run}/data/corpus.jsonl": "0" * 64}}
    pair = {"a": "sft", "b": "base", "judge": "rubric", "n": 2, "wins": 1, "ties": 0, "losses": 1, "win_rate": 0.5}
    result = {
        "n_prompts": 2,
        "models": {"base": {"score_mean": 0.5, "by_source": {"x": {"n": 2}}}, "sft": {}},
        "comparisons": [pair | {"interval": [0.1, 0.9]}],
    }
    answer = {"messages": [{"role": "user", "content": "Hi"}], "answers": {"sft": {"text": "Hello", "score": 1.0}}}
    for name, content in {
        "base/options.json": begun,
        "sft/provenance.json": begun | {"stage": "sft", "files": {"model": "0" * 64}, "results": {"valid_loss": 1.0}},
        "base/metrics.jsonl": {"step": 1, "loss": 2.5},
        "base/samples.jsonl": {"step": 1, "prompt": "Hi", "text": "Hello"},
        "evaluation/evaluation.json": result,
        "evaluation/answers.jsonl": answer,
        "recipe.yaml": {"name": "x", "run_dir": "{here}", "steps": {"sft": {"out": "{run}/sft"}}},
    }.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(json.dumps(content) + "\n")


def _places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield (*at, key)
        yield from _places(child, (*at, key))


def mutated_json(rng: random.Random, text: str) -> bytes:
    value = json.loads(text)
    kind = rng.choice(["value", "drop", "key", "nest", "cut", "flip", "repeat", "number"])
    places = list(_places(value))
    if kind in ("value", "drop", "key") and places:
        *above, last = rng.choice(places)
        inside = value
        for key in above:
            inside = inside[key]
        if kind == "value":
            odd = rng.choice(ODD)
            inside[last] = "bytes" if isinstance(odd, bytes) else odd
        elif kind == "drop":
            del inside[last]
        elif isinstance(inside, dict):
            inside[rng.choice(["", "stage", "{run}", "../x", "\ud800", "x" * 300])] = inside.pop(last)
    raw = bytearray(json.dumps(value).encode())
    if kind == "nest":
        raw = bytearray(b"[" * 100_000)
    elif kind == "cut":
        raw = raw[: rng.randrange(len(raw) + 1)]
    elif kind == "flip" and raw:
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    elif kind == "repeat":
        raw = raw + raw
    elif kind == "number":
        raw = bytearray(
            re.sub(rb"\d+", rng.choice([b"9" * 5000, b"1e999", b"NaN", b"-1", b"1.5"]), bytes(raw), count=1)
        )
    return bytes(raw) + b"\n"


def record_case(rng: random.Random, run: Path, sound: Path) -> None:
    """Puts one mutated file into an otherwise sound run."""
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(sound, run)
    files = sorted(path for path in run.rglob("*") if path.suffix in (".json", ".yaml") or path.parent.name != "data")
    file = rng.choice([path for path in files if path.is_file()])
    file.write_bytes(mutated_json(rng, file.read_text()))


def read_records(run: Path) -> None:
    for place in ("data", "base/options.json", "sft"):
        read_record(run / place)
    verify(run / "data" / "corpus.jsonl")
    stage_state("kitchen", KitchenOptions(out=run / "data", megabytes=0.01), [], directory=True)
    read_metrics(run / "base")
    for step in read_run(run).steps:
        _ = step.metrics, step.samples, step.results, step.options


# ------------------------------------------------------------------------------------------------------------- the run


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Of this process's own time, so that a busy machine changes nothing; twelve times as long on the clock."""

    def late(number: int, frame: object) -> None:
        raise AssertionError(f"took more than {seconds:g} s")

    timers = {signal.SIGPROF: signal.ITIMER_PROF, signal.SIGALRM: signal.ITIMER_REAL}
    before = {number: signal.signal(number, late) for number in timers}
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, 12 * seconds)
    try:
        yield
    finally:
        for number, timer in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])


def outcome(work: Callable[[], None], shown: Callable[[], str]) -> str:
    """ "accepted" or "refused". Raises AssertionError, with the case, for anything else."""
    try:
        with _within(SECONDS):
            work()
    except WukongError as error:
        line, code = str(error), error.exit_code
    except BaseException as error:
        raise AssertionError(f"{type(error).__name__}: {error}\n{shown()}") from error
    else:
        return "accepted"
    assert code == 2, f"{line}\n{shown()}"
    seen = all(c in JOINERS or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in line)
    assert seen, f"{line!r}\n{shown()}"
    return "refused"


def run(count: int, seed: int) -> Counter[str]:
    """How many of `count` cases were "recipe accepted", "recipe refused" (where it was not even read as one, "by the
    loader"), "record accepted" and "record refused"."""
    counts: Counter[str] = Counter()
    for stage in STAGES.values():  # importing torch is no part of a case
        stage.load()
    idle, quiet, before = _memory(), console.quiet, Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        console.quiet = True
        os.environ["WUKONG_DATA"] = str(directory / "data")
        os.chdir(directory)
        try:
            make_data(directory / "data")
            make_run(directory / "sound")
            for number in range(count):
                rng = random.Random(f"{seed}:{number}")
                if number % EVERY_RECORD == EVERY_RECORD - 1:
                    run_dir = directory / "run"
                    record_case(rng, run_dir, directory / "sound")
                    counts[f"record {outcome(lambda: read_records(run_dir), lambda: f'case {seed}:{number}')}"] += 1  # noqa: B023
                else:
                    path = recipe_case(rng, directory)
                    shown = lambda: f"case {seed}:{number}\n{path.read_bytes()[:3000]!r}"  # noqa: B023, E731
                    past: list[int] = []
                    result = outcome(lambda: check_recipe(path, directory / "new", past), shown)  # noqa: B023
                    counts[f"recipe {result}{'' if past else ' by the loader'}"] += 1
        finally:
            os.chdir(before)
            console.quiet = quiet
            del os.environ["WUKONG_DATA"]
    assert _memory() - idle < GROWTH, f"memory grew by {(_memory() - idle) >> 20} MB"
    return counts


def _memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    print(dict(run(int(sys.argv[1]), int(sys.argv[2]))))
