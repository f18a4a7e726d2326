"""One answer as tokens: what the model said of each, how far it is from its reference there, and the reward model's
score if the answer had ended there.

A policy's record (provenance.json) names the model that it was trained from, its reference, and the reward model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from rich.text import Text as Cell
from torch import Tensor

from wukong.errors import Text, UsageError
from wukong.language import counted, joined, spoken
from wukong.model.heads import ScalarModel
from wukong.model.hub import load_policy, load_reward
from wukong.model.language_model import LanguageModel
from wukong.objectives import kl_estimate
from wukong.options import POLICY_STAGES
from wukong.provenance import read_record
from wukong.records import PromptLike, as_messages
from wukong.scoring import frozen, prefix_scores, response_logprobs, response_positions
from wukong.tokenizer import Tokenizer
from wukong.training.compute import Compute, compute_for

MICRO_BATCH_TOKENS = 8192


@dataclass(frozen=True)
class InspectedResponse:
    """An answer as tokens; lists have one entry per token, its end token included.

    Attributes:
        messages: the prompt.
        text: the answer.
        tokens: as texts.
        logprobs: log pi of each (nats), at `temperature`.
        reference_logprobs, kl: of the reference, and log pi - log pi_ref; None without one.
        end_scores: the reward model's score of the answer up to each token; None without one.
        temperature: divides the logits of both models.
        reference, reward_model: what they were loaded from; "" for none.
    """

    messages: list[dict[str, str]]
    text: str
    tokens: list[str]
    logprobs: list[float]
    reference_logprobs: list[float] | None
    kl: list[float] | None
    end_scores: list[float] | None
    temperature: float
    reference: str
    reward_model: str

    def shown(self, model: str) -> dict[str, Any]:
        """For a page, as its view (view.js) reads it. model: the name that people know it by."""
        names = {name: Path(getattr(self, name)).name for name in ("reference", "reward_model")}
        return {k: v for k, v in vars(self).items() if v is not None} | names | {"model": model}


def recorded_companions(source: str | Path) -> tuple[str, str]:
    """(reference, reward model) that a policy was trained with, by its record; "" for what it does not name, or what
    is no longer there. Raises DataError for a damaged record."""
    record = read_record(source) if Path(source).is_dir() else None
    if record is None or record["stage"] not in POLICY_STAGES:
        return "", ""
    named = (str(record["options"].get(name) or "") for name in ("model", "reward_model"))
    reference, reward_model = (name if Path(name).is_dir() else "" for name in named)
    return reference, reward_model


@dataclass(frozen=True)
class Inspector:
    """A policy with its reference and reward model, loaded; made by `load_inspector`.

    raw: prompts are continued as texts, without the chat template, as for a base model.
    """

    policy: LanguageModel
    tokenizer: Tokenizer
    compute: Compute
    reference: LanguageModel | None
    reward_model: ScalarModel | None
    names: tuple[str, str]
    raw: bool

    def __call__(
        self, prompt: PromptLike, text: str, *, finished: bool = True, temperature: float = 1.0
    ) -> InspectedResponse:
        """The answer as tokens. A conversation that does not fit the context with it loses its oldest turns.

        Args:
            finished: whether the model ended it.
            temperature: that it was sampled at; 0 (greedy) counts as 1.

        Raises:
            UsageError: it has no token, or does not fit the context. DataError: the prompt expects no answer.
        """
        messages, temperature = as_messages(prompt), temperature or 1.0
        response = self.tokenizer.response_ids(text, finished)
        if not response:
            raise UsageError("this answer has no token")
        room = self.policy.config.n_positions - len(response)
        if room < 1:
            raise UsageError("this answer fills the model's context of {n} tokens", n=self.policy.config.n_positions)
        asked = self.tokenizer.prompt_ids(messages, room)
        read = self.tokenizer.raw_ids(messages[-1].content) if self.raw else asked
        logprobs = self._logprobs(self.policy, read, response, temperature)
        expected = None
        if self.reference is not None:
            expected = self._logprobs(self.reference, read, response, temperature)
        return InspectedResponse(
            messages=[{"role": message.role, "content": message.content} for message in messages],
            text=text,
            tokens=self.tokenizer.token_texts(response),
            logprobs=logprobs.tolist(),
            reference_logprobs=None if expected is None else expected.tolist(),
            kl=None if expected is None else kl_estimate(logprobs, expected, "k1").tolist(),
            end_scores=self._end_scores(asked, response, finished),
            temperature=temperature,
            reference=self.names[0],
            reward_model=self.names[1],
        )

    @torch.inference_mode()
    def _logprobs(self, model: LanguageModel, asked: list[int], response: list[int], temperature: float) -> Tensor:
        """(R,)"""
        ids = torch.tensor([asked + response])  # (1, T)
        predicts = response_positions([len(asked)], [len(response)], ids.shape[1])
        device = self.compute.device
        return response_logprobs(model, ids.to(device), predicts.to(device), temperature, self.compute)[0]

    def _end_scores(self, asked: list[int], response: list[int], finished: bool) -> list[float] | None:
        """The score after each token; the end token itself is no part of what a reward model reads."""
        model = self.reward_model
        if model is None or len(asked) + len(response) > model.config.n_positions:
            return None
        ids = asked + response[: len(response) - finished]
        scores = prefix_scores(model, ids, len(asked), self.compute, MICRO_BATCH_TOKENS)
        return [*scores[1:], *([scores[-1]] if finished else [])]


def load_inspector(
    source: str | Path, reference: str | None = None, reward_model: str | None = None, *, raw: bool = False,
    device: str = "auto",
) -> Inspector:  # fmt: skip
    """A policy with the reference and the reward model of its record, or those given; in float32, since a KL per token
    is small.

    Raises UsageError for a model that cannot be loaded, or has another tokenizer or chat template than the policy.
    """
    compute = compute_for("float32", device)
    policy, tokenizer = load_policy(source)
    recorded = recorded_companions(source)
    names = (recorded[0] if reference is None else reference, recorded[1] if reward_model is None else reward_model)
    of_reference = load_policy(names[0]) if names[0] else None
    of_reward = load_reward(names[1]) if names[1] else None
    for name, found in zip(names, (of_reference, of_reward), strict=True):
        if found and found[1].fingerprint != tokenizer.fingerprint:
            raise UsageError("{name}: its tokenizer or chat template is not the policy's", name=name)
    return Inspector(
        frozen(policy, compute), tokenizer, compute, frozen(of_reference[0], compute) if of_reference else None,
        frozen(of_reward[0], compute) if of_reward else None, names, raw,
    )  # fmt: skip


def token_table(found: InspectedResponse) -> Table:
    """The answer for a terminal, one token a line; a column that nothing is known of is left out."""
    names = {
        "logprobs": "log π",
        "reference_logprobs": "log π_ref",
        "kl": "KL",
        "end_scores": spoken("score if it ended here"),
    }
    columns = {title: values for name, title in names.items() if (values := getattr(found, name)) is not None}
    parts = [counted(len(found.tokens), "{n:,} token", "{n:,} tokens")]
    parts += [] if found.kl is None else [Text("KL {x:.3f} nats", x=sum(found.kl))]
    table = Table(title=spoken(joined([*parts, Text("at temperature {x:g}", x=found.temperature)])))
    table.add_column("token")
    for title in columns:
        table.add_column(title, justify="right")
    for i, token in enumerate(found.tokens):  # quoted: white space is seen, and no control character reaches a terminal
        table.add_row(Cell(repr(token)), *(f"{values[i]:.3f}" for values in columns.values()))
    return table
