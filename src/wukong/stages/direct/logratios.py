"""Answers as tokens, and their log-ratios to the reference, log pi - log pi_ref, for DPO and KTO.

Shape legend: B answers, T time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wukong.data.batches import by_length, pad
from wukong.model.language_model import LanguageModel
from wukong.processes import all_gather, local_part
from wukong.scoring import response_logprobs, response_positions
from wukong.training.compute import Compute


@dataclass
class AnswerTokens:
    """An answer as tokens, including the closing end token, and its log-prob (nats) under the reference."""

    prompt: list[int]
    response: list[int]
    reference: float = math.nan

    @property
    def ids(self) -> list[int]:
        return self.prompt + self.response


def response_sums(
    model: LanguageModel, answers: Sequence[AnswerTokens], temperature: float, compute: Compute
) -> Tensor:
    """log pi of each whole response (nats), in one forward pass: (B,) float32."""
    ids, _ = pad([answer.ids for answer in answers])  # (B, T)
    lengths = [len(answer.response) for answer in answers]
    predicts = response_positions([len(answer.prompt) for answer in answers], lengths, ids.shape[1])
    logprobs, _ = response_logprobs(model, ids.to(compute.device), predicts.to(compute.device), temperature, compute)
    return torch.stack([part.sum() for part in logprobs.split(lengths)])


def logratios(model: LanguageModel, answers: Sequence[AnswerTokens], temperature: float, compute: Compute) -> Tensor:
    """log pi - log pi_ref of each whole response (nats): (B,) float32."""
    reference = torch.tensor([answer.reference for answer in answers], device=compute.device)
    return response_sums(model, answers, temperature, compute) - reference


@torch.inference_mode()
def measure_reference(
    model: LanguageModel, answers: Sequence[AnswerTokens], temperature: float, compute: Compute, max_tokens: int
) -> None:
    """Fills in the reference's log-probs, once: the reference never changes."""
    model.eval().to(compute.device)

    def measured() -> list[tuple[int, float]]:
        found: list[tuple[int, float]] = []
        for rows in local_part(by_length([len(answer.ids) for answer in answers], max_tokens)):
            of_rows = response_sums(model, [answers[i] for i in rows], temperature, compute)
            found += zip(rows, of_rows.tolist(), strict=True)
        return found

    for i, value in all_gather(measured):
        answers[i].reference = value
