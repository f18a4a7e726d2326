"""What a run tells in the terminal: after each step what changed, the loss and one sample; at the end the same
question, answered by every model.

All of it is read from the files of the step, so that a line says what the result is, not what a stage believed. Models
answer the first prompt that the recipe pins for its report, with seed 0 and the sampling that they recommend.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from wukong.console import say
from wukong.errors import Text, brief
from wukong.files import numbered_lines
from wukong.language import counted
from wukong.options import POLICY_STAGES, StageOptions
from wukong.provenance import DIRECTORY_RECORD, FILE_RECORD, read_record
from wukong.report.answers import plain_question
from wukong.report.contents import AnsweredPrompt, iter_answered_prompts
from wukong.report.formatting import interval, number, percent

LONGEST_ANSWER = 240
"""Characters of an answer that is shown."""
SAMPLE_TOKENS = 80


def tell(stage: str, options: StageOptions, question: str | None) -> None:
    """Says what a finished step changed, and shows a sample of it.

    Args:
        question: what its model is asked, if it has one.
    """
    record = read_record(options.out / DIRECTORY_RECORD) or read_record(Path(f"{options.out}{FILE_RECORD}"))
    if record is None:  # the report has none
        return
    if (change := _change(stage, options, record["results"])) is not None:
        say("  {change}", change=change)
    for line in _sample(stage, options, question):
        say("  {line}", line=line)


# ---------------------------------------------------------------------------------------------------- what changed


def _change(stage: str, options: StageOptions, results: dict[str, Any]) -> Text | None:
    kind = "policy" if stage in POLICY_STAGES else stage
    return CHANGES[kind](options.out, results) if kind in CHANGES else None


def _course(out: Path, name: str) -> dict[str, str]:
    """The first and the last value of a metric, for a text."""
    logged = (json.loads(line) for _, line in numbered_lines(out / "metrics.jsonl") if line.strip())
    values = [one[name] for one in logged if one.get(name) is not None]
    return {"first": number(values[0], 3), "last": number(values[-1], 3)} if values else {"first": "–", "last": "–"}


def _tokenized(out: Path, results: dict[str, Any]) -> Text:
    tokens, vocabulary = results["train"]["tokens"], results["vocab_size"]
    return Text("cut the text into {tokens:,} tokens, from a vocabulary of {n:,}", tokens=tokens, n=vocabulary)


def _pretrained(out: Path, results: dict[str, Any]) -> Text:
    loss = results["valid_loss"]
    learned = "learned to continue text: loss {first} -> {last}; on held-out text {loss}, a choice among {words} tokens"
    return Text(learned, **_course(out, "loss"), loss=number(loss, 3), words=number(math.exp(loss), 2))


def _tuned(out: Path, results: dict[str, Any]) -> Text:
    if results.get("valid_loss") is None:
        return Text("learned to answer: loss {first} -> {last}", **_course(out, "loss"))
    learned = "learned to answer: loss {first} -> {last}; on held-out answers {loss}"
    return Text(learned, **_course(out, "loss"), loss=number(results["valid_loss"], 3))


def _sampled(out: Path, results: dict[str, Any]) -> Text:
    answers = counted(results["responses"], "{n:,} answer", "{n:,} answers")
    ended = percent(results["termination_rate"])
    return Text("wrote {answers} to compare, {share} of them to their end", answers=answers, share=ended)


def _labelled(out: Path, results: dict[str, Any]) -> Text:
    labels, prompts = results["records"], results["prompts"]
    return Text("judged the answers to {prompts:,} prompts: {n:,} labels, ties left out", prompts=prompts, n=labels)


def _rewarded(out: Path, results: dict[str, Any]) -> Text:
    course = _course(out, "loss")
    if not results.get("valid_pairs"):
        return Text("learned what is preferred: loss {first} -> {last}", **course)
    learned = "learned what is preferred: loss {first} -> {last}; right on {share} of held-out pairs ({interval})"
    spread = interval(results["valid_accuracy_interval"], as_percent=True)
    return Text(learned, **course, share=percent(results["valid_accuracy"]), interval=spread)


def _trained(out: Path, results: dict[str, Any]) -> Text:
    if "kl" in results:
        learned = "learned to please the reward model: score {first} -> {last}, {kl} nats of KL from where it started"
        return Text(learned, **_course(out, "score"), kl=number(results["kl"], 2))
    if "first_loss" in results:
        distance = {name: number(results[name], 3) for name in ("first_loss", "loss")}
        return Text("learned to answer like the teacher: {first_loss} -> {loss} nats of KL per token", **distance)
    return Text("learned from preferences: loss {first} -> {last}", **_course(out, "loss"))


CHANGES: dict[str, Callable[[Path, dict[str, Any]], Text]] = {
    "tokenize": _tokenized, "pretrain": _pretrained, "sft": _tuned, "sample": _sampled, "label": _labelled,
    "reward": _rewarded, "policy": _trained,
}  # fmt: skip


# ----------------------------------------------------------------------------------------------------- one sample


def _sample(stage: str, options: Any, question: str | None) -> Iterator[Text]:
    if stage == "sample":
        first = _first(options.out)
        asked, text = first["messages"][-1]["content"], first["text"]
        yield Text("asked {question}, one answer: {answer}", question=_quoted(asked), answer=_quoted(text))
    elif stage == "label":
        best, worst = _best_and_worst(_first(options.out))
        yield Text("better: {answer}", answer=_quoted(best))
        yield Text("worse: {answer}", answer=_quoted(worst))
    elif stage == "reward":
        yield from _scored(options)
    elif question is not None and stage in ("pretrain", "sft", *POLICY_STAGES):
        from wukong import api  # needs torch

        model = api.load_policy(options.out, device=options.device, template="plain" if stage == "pretrain" else None)
        room = min(SAMPLE_TOKENS, model.model.config.n_positions // 2)
        answer = model.generate([question], max_new_tokens=room)[0].text
        asked = "{question} goes on: {answer}" if stage == "pretrain" else "asked {question}, it says: {answer}"
        yield Text(asked, question=_quoted(question), answer=_quoted(answer))


def _scored(options: Any) -> Iterator[Text]:
    """The scores of the best and the worst answer of the first comparison, where it is a file of ours."""
    path = Path(str(next(iter([*options.eval_data, *options.data]))))
    if not path.is_file() or path.suffix != ".jsonl" or "prompt" not in (first := _first(path)):
        return
    from wukong import api  # needs torch

    answers = _best_and_worst(first)
    reward = api.load_reward(options.out, device=options.device)
    scores = reward.score([(first["prompt"], answer) for answer in answers])
    for score, answer in zip(scores, answers, strict=True):
        yield Text("scores {score}: {answer}", score=number(score, 2), answer=_quoted(answer))


def _first(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(next(line for _, line in numbered_lines(path) if line.strip()))
    return found


def _best_and_worst(record: dict[str, Any]) -> tuple[str, str]:
    """Of a ranking or a comparison, in our format."""
    if "groups" in record:
        return record["responses"][record["groups"][0][0]], record["responses"][record["groups"][-1][0]]
    return record["chosen"], record["rejected"]


def _quoted(text: str) -> str:
    return f"“{brief(text, str, LONGEST_ANSWER)}”" if text.strip() else "“”"


# -------------------------------------------------------------------------------------------------------- the end


def tell_answers(evaluation: Path, pinned: Sequence[str]) -> None:
    """One question and what each model answered, from the oldest to the newest: the first pinned prompt that was
    evaluated, else the first prompt."""
    found = _pinned_prompt(evaluation / "answers.jsonl", pinned)
    if found is None:
        return
    say("the same question, answered by each model: {question}", question=_quoted(found.messages[-1].content))
    for name, answer in found.answers.items():
        say("  {name}: {answer}", name=name, answer=brief(answer.text, str, LONGEST_ANSWER) or Text("(empty)"))


def _pinned_prompt(path: Path, pinned: Sequence[str]) -> AnsweredPrompt | None:
    wanted = list(map(plain_question, pinned))
    first, best, place = None, None, len(wanted)
    for prompt in iter_answered_prompts(path):
        first = first or prompt
        question = plain_question(prompt.messages[-1].content)
        if question in wanted[:place]:
            best, place = prompt, wanted.index(question)
        if not place:
            break
    return best or first
