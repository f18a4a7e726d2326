"""A language model behind an OpenAI-compatible API as a judge of pairs of answers (Zheng et al. 2023, MT-Bench).

Such judges favour the answer they read first, so each pair is judged in both orders, and only a verdict that is the
same in both counts as a preference. Verdicts cost time and money: each is stored in a file as it arrives, and not
requested again.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from wukong.feedback.endpoint import Endpoint
from wukong.feedback.replies import Replies, gather
from wukong.records import Message

INSTRUCTIONS = """You are an impartial judge. Below stand a conversation and two answers to its last message. \
Decide which answer is better: more helpful, more accurate, safer, better written. Do not prefer an answer because it \
is longer, nor because it stands first. Say briefly why, then end with your verdict on a line of its own: [[A]] if \
answer A is better, [[B]] if answer B is better, [[tie]] if neither is."""

BY_RUBRIC = "Judge by this rubric and by nothing else:"
"""What precedes a written rubric, behind the instructions."""

_VERDICT = re.compile(r"\[\[\s*(A|B|C|tie)\s*\]\]", re.IGNORECASE)
_WORTH = {"a": 1.0, "b": 0.0, "c": 0.5, "tie": 0.5}


def verdict_of(reply: str) -> float | None:
    """1 if the first answer is better, 0 if the second is, 1/2 for a tie; None for a reply without a verdict.

    The last verdict counts: a judge that reasons aloud may mention others before.
    """
    found = _VERDICT.findall(reply)
    return _WORTH[found[-1].lower()] if found else None


def question(conversation: Sequence[Message], first: str, second: str) -> str:
    """The judge's prompt."""
    turns = "\n\n".join(f"{m.role}: {m.content}" for m in conversation)
    return f"[conversation]\n{turns}\n\n[answer A]\n{first}\n\n[answer B]\n{second}"


class PairwiseJudge:
    """Asks one model, and stores its replies.

    Args:
        endpoint: the base URL, e.g. http://127.0.0.1:8000/v1 (key: OPENAI_API_KEY).
        model: the model's name on the server.
        memory: the JSONL file of replies; read first, then appended to.
        rubric: what to judge by, instead of what the instructions name.

    Raises:
        UsageError: the URL is invalid, or contains a secret.
    """

    def __init__(self, endpoint: str, model: str, memory: Path, rubric: str = "") -> None:
        self.endpoint, self.model, self.replies = Endpoint(endpoint, model), model, Replies(memory)
        self.instructions = f"{INSTRUCTIONS}\n\n{BY_RUBRIC}\n{rubric}" if rubric else INSTRUCTIONS

    def ask(self, questions: Sequence[str], on_reply: Callable[[int], None]) -> list[str]:
        """The replies, in order; `on_reply` is called with the number that arrived since the last call.

        Raises:
            RunError: the server refuses or cannot be reached; replies received so far are kept.
        """
        asked = (f"{self.model}\0{self.instructions}\0{one}" for one in questions)
        keys = [hashlib.sha256(one.encode()).hexdigest()[:32] for one in asked]
        times = Counter(keys)
        system = Message(role="system", content=self.instructions)
        requests = {
            key: self.endpoint.request([system, Message(role="user", content=one)], temperature=0)
            for key, one in zip(keys, questions, strict=True)
        }
        gather(requests, self.endpoint.reply, self.replies, self.endpoint.remote, lambda key: on_reply(times[key]))
        return [self.replies[key].text for key in keys]


def agreed(forward: float | None, backward: float | None) -> float | None:
    """The verdict on (a, b) from those on (a, b) and (b, a): a preference only if both orders agree, else a tie; None
    if either reply has no verdict."""
    if forward is None or backward is None:
        return None
    return forward if forward == 1 - backward else 0.5
