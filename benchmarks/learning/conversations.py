"""Does a conversation hold? Models answer the kitchen's test questions over three turns, each time after what they
themselves said before, and the rubric judges every answer.

    python benchmarks/learning/conversations.py runs/kitchen --out runs/conversations.md

Every turn asks a question of the same mixture, in words of the test: three fifths about dishes, the rest knowledge,
unsafe requests and talk. Several runs are pooled. The interval of a difference resamples conversations.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.command_line import new_parser, publish, this_command
from shared.machine import machine
from shared.table import markdown_table

import wukong
from wukong.kitchen.conversations import Exchange, ask
from wukong.kitchen.questions import ask_dish, ask_fact, ask_unsafe, phrasings_of
from wukong.kitchen.rubric import judge
from wukong.kitchen.worlds import World, load_world
from wukong.records import Message
from wukong.stats import mean_interval

TURNS = 3


def question(world: World, rng: random.Random) -> Exchange:
    """A test question of any kind that may stand anywhere in a conversation."""
    kind = rng.choices(("dish", "knowledge", "unsafe", "talk"), (60, 15, 15, 10))[0]
    if kind == "dish":
        return Exchange(kind, "", rng.choice(ask_dish(world, rng.choice(world.training_dishes), "unseen")), "")
    if kind == "knowledge":
        return Exchange(kind, "", rng.choice(ask_fact(world, rng.choice(world.knowledge), "unseen")), "")
    if kind == "unsafe":
        return Exchange(kind, "", rng.choice(ask_unsafe(world, "unseen")).text, "")
    talk = rng.choice([talk for talk in world.conversations.kinds if talk.place is None])
    return Exchange(kind, "", rng.choice(phrasings_of(talk.remarks, "unseen")), "", talk)


def play(model: str, world: World, count: int, seed: int) -> np.ndarray:
    """The rubric's scores, (count, TURNS)."""
    policy = wukong.load_policy(model)
    conversations: list[list[Message]] = [[] for _ in range(count)]
    scores = np.zeros((count, TURNS))
    for turn in range(TURNS):
        for index, messages in enumerate(conversations):
            rng = random.Random(f"conversation {seed} {index} {turn}")
            asked = ask(world, rng, question(world, rng), first=turn == 0, wording="unseen")
            messages.append(Message(role="user", content=asked))
        answers = policy.generate(conversations, max_new_tokens=112, seed=seed + turn)
        for index, (messages, answer) in enumerate(zip(conversations, answers, strict=True)):
            scores[index, turn] = judge(messages, answer.text).score
            messages.append(Message(role="assistant", content=answer.text))
    return scores


def rows(runs: list[Path], model: str, count: int) -> list[str]:
    scores = []
    for index, run in enumerate(runs):
        recipe = json.loads((run / "data" / "provenance.json").read_text())
        world = load_world(recipe["options"].get("world", "en"))
        scores.append(play(str(run / model), world, count, index))
    pooled = np.concatenate(scores)
    cells = [model, *(f"{statistics.mean(pooled[:, turn]):.2f}" for turn in range(TURNS))]
    for turn in range(1, TURNS):
        difference = pooled[:, turn] - pooled[:, 0]
        low, high = mean_interval(difference) or (float("nan"), float("nan"))
        cells.append(f"{difference.mean():+.2f} [{low:+.2f}, {high:+.2f}]")
    return cells


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="finished runs of the kitchen")
    parser.add_argument("--models", nargs="+", default=["sft", "policy"])
    parser.add_argument("--count", type=int, default=200, help="conversations per run")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    table = [rows(arguments.runs, model, arguments.count) for model in arguments.models]
    columns = ["model", "turn 1", "turn 2", "turn 3", "turn 2 - turn 1", "turn 3 - turn 1"]
    head = f"`{this_command()}`\n\n{machine()}; {time.strftime('%Y-%m-%d')}"
    publish(f"{head}\n\n{markdown_table(columns, table)}\n", arguments.out)


if __name__ == "__main__":
    main()
