"""Reward models as judges of text, and whether one can be told from chance."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from wukong.console import say
from wukong.data.answers import last_turn, shared_prompt
from wukong.errors import UsageError
from wukong.feedback.judge import Judge, JudgedPrompt, Opinion
from wukong.files import read_json
from wukong.model.hub import load_reward
from wukong.records import Message, prompt_id
from wukong.scoring import scores_of
from wukong.stats import chance_problem
from wukong.training.compute import Compute


def is_model(name: str) -> bool:
    """Whether a judge or reward of this name is a reward model's directory."""
    return Path(name).is_dir()


def reward_judge(directory: str, compute: Compute, max_tokens: int, room: int | None = None) -> Judge:
    """A reward model as a judge of text, with its own tokenizer.

    All answers to one prompt that it is asked about together are read with the same prompt (`wukong.data.answers`). An
    answer that fills the context may be some tokens longer when it is read than it was when it was written: such a
    one is read up to the end of the context, and their number is said.

    Args:
        room: leave room in the context for answers of so many tokens, whatever they have: for answers to one prompt
            that are judged in several calls.
    """
    model, tokenizer = load_reward(directory)
    context = model.config.n_positions

    def read_prompt(prompt: Sequence[Message], lengths: Sequence[int]) -> list[int]:
        ids = shared_prompt(tokenizer, prompt, lengths, context)
        ids = tokenizer.prompt_ids(last_turn(prompt)) if ids is None else ids
        if len(ids) >= context:
            raise UsageError(f"{directory}: a prompt does not fit its context of {context}")
        return ids

    def judge(prompts: Sequence[JudgedPrompt], texts: Sequence[str]) -> list[Opinion]:
        responses = [tokenizer.response_ids(text, finished=False) for text in texts]
        together: dict[str, list[int]] = defaultdict(list)
        for i, prompt in enumerate(prompts):
            together[prompt_id(prompt.messages)].append(i)
        read: list[list[int]] = [[]] * len(texts)
        for rows in together.values():
            lengths = [len(responses[i]) for i in rows] if room is None else [room]
            ids = read_prompt(prompts[rows[0]].messages, lengths)
            for i in rows:
                read[i] = [*ids, *responses[i]]
        if cut := sum(len(ids) > context for ids in read):
            say(
                "{directory}: {cut} of {n} answers are longer than its context, and read up to there",
                directory=directory,
                cut=cut,
                n=len(texts),
            )
        read = [ids[:context] for ids in read]
        return [Opinion(score, {}, []) for score in scores_of(model, read, compute, max_tokens)]

    return judge


def require_better_than_chance(reward_model: str | Path, allow: bool = False) -> None:
    """Refuses to train against a reward model that cannot be told from a coin: one line in a stage that uses one.

    The numbers are those that `wukong reward` wrote into provenance.json. A model without them (from another tool, or
    trained with nothing held out) is let pass with a line that says so.

    Args:
        reward_model: its directory or hub id.
        allow: say it, but go on.

    Raises:
        UsageError: the lower end of the interval of its accuracy is at or below 50 %.
    """
    path = Path(reward_model) / "provenance.json"
    results = read_json(path).get("results", {}) if path.is_file() else {}
    if not results.get("valid_pairs"):
        say(
            "{reward_model}: no held-out accuracy recorded; wukong reward-report measures it", reward_model=reward_model
        )
        return
    measured = results["valid_accuracy"], results["valid_accuracy_interval"], results["valid_pairs"]
    problem = chance_problem(*measured, prompts=results.get("valid_prompts"))
    if problem and not allow:
        raise UsageError(
            "{reward_model}: {problem}; label more, see `wukong reward-report {reward_model} --out REPORT`, or give "
            "--allow-chance-reward-model",
            reward_model=reward_model,
            problem=problem,
        )
    if problem:
        say("{reward_model}: {problem}; training goes on, as asked", reward_model=reward_model, problem=problem)
