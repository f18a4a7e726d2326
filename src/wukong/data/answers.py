"""Answers to a prompt as tokens, and preferences by prompt, as rewards, DPO and KTO read them.

All answers to a prompt are read with the same prompt tokens. A prompt that is too long loses its oldest turns until
the longest answer fits; if it were cut per answer, answers would be compared under different prompts. When sampling,
the longest answer is --max-new-tokens, and the reward model reads the same tokens as the policy.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from wukong.data.split import prompt_key
from wukong.data.summary import ReadSummary
from wukong.errors import DataError
from wukong.records import Comparison, Message, Ranking, prompt_id
from wukong.tokenizer import Tokenizer

Answered = tuple[Sequence[Message], str]
"""A prompt and an answer to it."""


def last_turn(prompt: Sequence[Message]) -> list[Message]:
    """The prompt from the user's last message on, after a leading system message."""
    users = [i for i, message in enumerate(prompt) if message.role == "user"]
    return list(prompt) if len(users) < 2 else [*prompt[: prompt[0].role == "system"], *prompt[users[-1] :]]


def shared_prompt(
    tokenizer: Tokenizer, prompt: Sequence[Message], lengths: Sequence[int], context: int
) -> list[int] | None:
    """The prompt's tokens, without the oldest turns if the longest of these answers would not fit.

    Args:
        lengths: of the answers, in tokens. One that does not fit even with the last turn alone does not count.
        context: the maximum tokens of prompt and answer together.

    Returns:
        None if no answer fits.

    Raises:
        DataError: the prompt is empty, or does not expect an answer.
    """
    whole = tokenizer.prompt_ids(list(prompt))
    if len(whole) + max(lengths) <= context:
        return whole
    room = context - len(tokenizer.prompt_ids(last_turn(prompt)))
    longest = max((length for length in lengths if length <= room), default=None)
    return None if longest is None else tokenizer.prompt_ids(list(prompt), max_tokens=context - longest)


def tokenised_answers(
    tokenizer: Tokenizer, answers: Sequence[Answered], context: int, *, finished: bool
) -> list[tuple[list[int], list[int]] | None]:
    """(prompt tokens, answer tokens) of each, in order; all answers to a prompt have the same prompt tokens.

    Args:
        finished: whether answers include the closing end token.

    Returns:
        None for an answer that does not fit the context even with its prompt's last turn alone, or whose prompt
        expects no answer.
    """
    responses = [tokenizer.response_ids(text, finished) for _, text in answers]
    together: dict[str, list[int]] = defaultdict(list)
    for i, (prompt, _) in enumerate(answers):
        together[prompt_id(prompt)].append(i)
    found: list[tuple[list[int], list[int]] | None] = [None] * len(answers)
    for rows in together.values():
        try:
            ids = shared_prompt(tokenizer, answers[rows[0]][0], [len(responses[i]) for i in rows], context)
        except DataError:
            continue
        for i in rows:
            if ids is not None and len(ids) + len(responses[i]) <= context:
                found[i] = ids, responses[i]
    return found


def answers_ids(tokenizer: Tokenizer, answers: Sequence[Answered], context: int) -> list[list[int] | None]:
    """Prompt + answer as a reward model reads them: `tokenised_answers` without the closing end token, joined."""
    found = tokenised_answers(tokenizer, answers, context, finished=False)
    return [None if one is None else [*one[0], *one[1]] for one in found]


@dataclass
class PromptPairs:
    """All judgments of the answers to one prompt."""

    prompt: list[Message]
    texts: list[str] = field(default_factory=list)  # distinct
    answers: list[tuple[list[int], list[int]]] = field(default_factory=list)  # (prompt tokens, answer tokens)
    pairs: list[tuple[int, int]] = field(default_factory=list)  # (better, worse), one per judgment
    records: list[Comparison | Ranking] = field(default_factory=list)  # of each pair


def pairs_by_prompt(
    records: Sequence[Comparison | Ranking], tokenizer: Tokenizer, context: int, summary: ReadSummary, *, finished: bool
) -> list[PromptPairs]:
    """The comparisons and rankings of each prompt, by any annotator, in the order of their first record.

    Prompts that differ only in white space are the same. A record without a pair that fits is dropped and counted.
    """
    by_prompt: dict[str, list[Comparison | Ranking]] = defaultdict(list)
    for record in records:
        by_prompt[prompt_key(record.prompt)].append(record)
    groups = (_grouped(own, tokenizer, context, summary, finished) for own in by_prompt.values())
    return [group for group in groups if group.pairs]


def _grouped(
    records: Sequence[Comparison | Ranking], tokenizer: Tokenizer, context: int, summary: ReadSummary, finished: bool
) -> PromptPairs:
    group = PromptPairs(list(records[0].prompt))
    judged = [_judged(record) for record in records]
    wanted = list(dict.fromkeys(text for texts, pairs in judged if pairs for text in texts))
    read = tokenised_answers(tokenizer, [(group.prompt, text) for text in wanted], context, finished=finished)
    fitting = {text: one for text, one in zip(wanted, read, strict=True) if one is not None}
    place = {text: i for i, text in enumerate(fitting)}
    group.texts, group.answers = list(fitting), list(fitting.values())
    for record, (_, pairs) in zip(records, judged, strict=True):
        fit = [(place[better], place[worse]) for better, worse in pairs if better in place and worse in place]
        if not fit:
            equals = "a ranking of equals" if isinstance(record, Ranking) else "both answers are the same"
            summary.dropped[f"longer than the context of {context} tokens" if pairs else equals] += 1
        group.pairs += fit
        group.records += [record] * len(fit)
    return group


def _judged(record: Comparison | Ranking) -> tuple[Sequence[str], list[tuple[str, str]]]:
    """A record's answers, and its pairs (better, worse) of different answers."""
    if isinstance(record, Comparison):
        texts: Sequence[str] = (record.chosen, record.rejected)
        pairs = [(record.chosen, record.rejected)]
    else:
        texts = record.responses
        pairs = [(texts[better], texts[worse]) for better, worse in record.pairs()]
    return texts, [(better, worse) for better, worse in pairs if better != worse]


def pair_index(groups: Sequence[tuple[int, Sequence[tuple[int, int]]]]) -> tuple[list[int], list[int], list[int]]:
    """Which rows the pairs of several groups compare, with the answers of all groups in one batch.

    Args:
        groups: (number of answers, pairs of better and worse answer) of each.

    Returns:
        Of each pair the row of the better answer, the row of the worse one, and the group.
    """
    better, worse, member, start = [], [], [], 0
    for number, (n_answers, pairs) in enumerate(groups):
        better += [start + b for b, _ in pairs]
        worse += [start + w for _, w in pairs]
        member += [number] * len(pairs)
        start += n_answers
    return better, worse, member
