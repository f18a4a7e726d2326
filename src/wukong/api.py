"""Models in Python: the small stable interface for notebooks and other programs.

Everything here is also an attribute of the package: `wukong.load_policy("runs/kitchen/policy")`.

A prompt is a plain string (one user turn) or a list of messages, `{"role": ..., "content": ...}`. Each method takes a
list, works in batches, and answers in the order of the list; an item's result does not depend on the others.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from wukong.data.batches import by_length, pad
from wukong.errors import UsageError
from wukong.model import hub
from wukong.model.gpt2 import GPT2
from wukong.model.heads import ScalarModel
from wukong.records import Message, PromptLike, Response, Sampling, as_messages, prompt_id
from wukong.rollout import generate, inference_copy
from wukong.sampling import OWN_DISTRIBUTION, SamplingParameters
from wukong.seeds import derived_seed
from wukong.stages.common import response_logprobs, response_positions, scores_of
from wukong.stages.pairs import answers_ids
from wukong.tokenizer import Tokenizer
from wukong.training.compute import Compute, Precision, compute_for

MICRO_BATCH_TOKENS = 8192


class Policy:
    """A language model with its tokenizer; made by `load_policy`.

    Attributes:
        model: the GPT-2, weights in float32, in eval mode.
        tokenizer: its tokenizer and chat template.
        name: where it was loaded from.
        sampling: how it wants to be sampled (its generation_config.json), which `generate` does unless told.
    """

    def __init__(
        self,
        model: GPT2,
        tokenizer: Tokenizer,
        compute: Compute,
        name: str,
        sampling: SamplingParameters = OWN_DISTRIBUTION,
    ) -> None:
        self.model, self.tokenizer, self.compute, self.name = model.to(compute.device).eval(), tokenizer, compute, name
        self.sampling = sampling

    @cached_property
    def _decoder(self) -> GPT2:
        return inference_copy(self.model, self.compute)

    def generate(
        self,
        prompts: Sequence[PromptLike],
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        batch_size: int = 128,
    ) -> list[Response]:
        """One response to each prompt.

        Args:
            prompts: a prompt that stands in the list n times gets n different responses. Of a conversation that does
                not fit the context, the oldest turns are left out.
            max_new_tokens: responses are cut there; when absent, 128 or half of the model's context, if that is less.
            temperature: the logits are divided by it; 0 always takes the likeliest token.
            top_k: draw from the k most likely tokens; 0 means from all.
            top_p: draw from the most likely tokens whose probabilities add up to this much; 1 means from all.
                Absent values are the model's own (`sampling`), those of top_k and top_p only without a temperature.
            seed: the same seed gives the same response to a prompt, whatever else is in the list.
            batch_size: how many are decoded together.

        Raises:
            UsageError: an option out of range. DataError: a prompt is empty or too long.
        """
        _check_list(prompts, "prompts")
        context = self.model.config.n_positions
        length = min(128, context // 2) if max_new_tokens is None else max_new_tokens
        if not 1 <= length < context:
            raise UsageError(f"max_new_tokens {length} must be at least 1 and below the model's context of {context}")
        drawing = self.sampling.unless_given(self.name, temperature, top_k, top_p)
        if drawing.temperature < 0 or drawing.top_k < 0 or not 0 < drawing.top_p <= 1:
            raise UsageError("temperature and top_k must not be negative, top_p must be above 0 and at most 1")
        conversations = [as_messages(prompt) for prompt in prompts]
        names = [prompt_id(messages) for messages in conversations]
        # As `wukong sample` seeds them, so that both give the same responses.
        temperature, top_k, top_p = drawing.temperature, drawing.top_k, drawing.top_p
        repeats = zip(names, _repeats(names), strict=True)
        seeds = [derived_seed(seed, name, temperature, repeat) for name, repeat in repeats]
        sampled = generate(
            self._decoder,
            [self.tokenizer.prompt_ids(messages, max_tokens=context - length) for messages in conversations],
            eos_id=self.tokenizer.eos_ids,
            max_new_tokens=length,
            seeds=seeds,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            batch_size=batch_size,
        )
        responses = []
        for name, own_seed, messages, answer in zip(names, seeds, conversations, sampled, strict=True):
            sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, seed=own_seed)
            identity = hashlib.sha256(repr((name, self.name, sampling.model_dump())).encode()).hexdigest()[:16]
            responses.append(
                Response(
                    id=identity,
                    prompt_id=name,
                    messages=messages,
                    text=self.tokenizer.decode(answer.ids),
                    model=self.name,
                    sampling=sampling,
                    finish_reason="stop" if answer.finished else "length",
                    n_tokens=len(answer.ids),
                )
            )
        return responses

    @torch.inference_mode()
    def logprobs(self, pairs: Sequence[tuple[PromptLike, str]], *, finished: bool = True) -> list[Tensor]:
        """The log-probability (nats) of each token of each response, given the prompt and the tokens before.

        Args:
            pairs: (prompt, response) each.
            finished: count the closing end-of-text token too, as the last one.

        Returns:
            A 1-D float32 tensor on the CPU for each pair, one entry for each response token. In the precision the
            model was loaded for: `load_policy(..., precision="float32")` is the most exact.

        Raises:
            DataError: an empty prompt. UsageError: prompt and response do not fit the model's context.
        """
        split = _token_pairs(self.tokenizer, pairs, self.model.config.n_positions, finished)
        results = [torch.empty(0)] * len(split)
        for rows in by_length([len(prompt) + len(response) for prompt, response in split], MICRO_BATCH_TOKENS):
            ids, _ = pad([split[i][0] + split[i][1] for i in rows])  # (B, T)
            prompts, responses = [len(split[i][0]) for i in rows], [len(split[i][1]) for i in rows]
            predicts = response_positions(prompts, responses, ids.shape[1]).to(self.compute.device)
            logprobs, _ = response_logprobs(self.model, ids.to(self.compute.device), predicts, 1.0, self.compute)
            for i, part in zip(rows, logprobs.cpu().split(responses), strict=True):
                results[i] = part.clone()
        return results


class Reward:
    """A reward model with its tokenizer; made by `load_reward`.

    Attributes:
        model: the reward model, weights in float32, in eval mode.
        tokenizer: its tokenizer and chat template.
        name: where it was loaded from.
    """

    def __init__(self, model: ScalarModel, tokenizer: Tokenizer, compute: Compute, name: str) -> None:
        self.model, self.tokenizer, self.compute, self.name = model.to(compute.device).eval(), tokenizer, compute, name

    def score(self, pairs: Sequence[tuple[PromptLike, str]]) -> list[float]:
        """The reward of each response: only differences mean something, and only between answers to one prompt.

        Args:
            pairs: (prompt, response) each. As in training, a prompt that is too long loses its oldest turns, once for
                all responses to it in the list, so that the longest of them fits.

        Raises:
            UsageError: an empty prompt, or one whose last turn and response do not fit the model's context.
        """
        _check_list(pairs, "(prompt, response) pairs")
        context = self.model.config.n_positions
        read = answers_ids(self.tokenizer, [(as_messages(prompt), response) for prompt, response in pairs], context)
        sequences = [ids for ids in read if ids is not None]
        if len(sequences) < len(read):
            number = read.index(None) + 1
            raise UsageError(f"pair {number}: the last turn and the response do not fit the context of {context}")
        return scores_of(self.model, sequences, self.compute, MICRO_BATCH_TOKENS)


def load_policy(
    source: str | Path,
    *,
    device: str = "auto",
    precision: Precision = "auto",
    template: str | Path | None = None,
) -> Policy:
    """A language model to talk to.

    Args:
        source: a model directory of ours or of `transformers`, or a hub id such as "gpt2".
        device: auto, cpu, cuda or cuda:N.
        precision: of the matrix products; auto takes bfloat16 where that is faster.
        template: a chat template (alpaca, plain, or a Jinja file) instead of the model's own.

    Raises:
        UsageError: one line that says which file is wrong and how.
    """
    model, tokenizer = hub.load_policy(source, template=template)
    return Policy(model, tokenizer, compute_for(precision, device), str(source), hub.recommended_sampling(source))


def load_reward(
    source: str | Path,
    *,
    device: str = "auto",
    precision: Precision = "auto",
    template: str | Path | None = None,
) -> Reward:
    """A reward model: ours, or anyone's GPT-2 sequence classifier with one label.

    Arguments and errors as for `load_policy`.
    """
    model, tokenizer = hub.load_reward(source, template=template)
    return Reward(model, tokenizer, compute_for(precision, device), str(source))


def _check_list(items: Sequence, what: str) -> None:
    """A single prompt in the place of a list would be taken apart into characters or turns."""
    if isinstance(items, str) or (items and isinstance(items[0], Message | Mapping)):
        raise UsageError(f"a list of {what} is expected: put the single one into [ ]")


def _repeats(names: Sequence[str]) -> list[int]:
    """How often each name occurred before: 0 for the first."""
    seen: Counter[str] = Counter()
    repeats = []
    for name in names:
        repeats.append(seen[name])
        seen[name] += 1
    return repeats


def _token_pairs(
    tokenizer: Tokenizer, pairs: Sequence[tuple[PromptLike, str]], context: int, finished: bool
) -> list[tuple[list[int], list[int]]]:
    """(prompt tokens, response tokens) of each pair."""
    _check_list(pairs, "(prompt, response) pairs")
    tokens = []
    for number, (prompt, response) in enumerate(pairs, start=1):
        ids = (tokenizer.prompt_ids(prompt), tokenizer.response_ids(response, finished))
        if len(ids[0]) + len(ids[1]) > context:
            raise UsageError(
                f"pair {number}: prompt and response have {len(ids[0])} + {len(ids[1])} tokens, more than the "
                f"model's context of {context}"
            )
        tokens.append(ids)
    return tokens
