"""The Python interface to models, for notebooks and other programs; small and stable.

Everything here is also an attribute of the package: `wukong.load_policy("runs/kitchen/policy")`.

A prompt is a string (one user turn) or a list of messages, `{"role": ..., "content": ...}`. Each method takes a list,
works in batches, and returns results in order; an item's result does not depend on the others.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from wukong.data.answers import answers_ids
from wukong.data.batches import by_length, pad
from wukong.errors import UsageError
from wukong.model import hub
from wukong.model.heads import ScalarModel
from wukong.model.language_model import LanguageModel
from wukong.records import Message, PromptLike, Response, Sampling, as_messages, prompt_id
from wukong.rollout import generate, inference_copy
from wukong.sampling import OWN_DISTRIBUTION, SamplingParameters
from wukong.scoring import response_logprobs, response_positions, scores_of
from wukong.seeds import derived_seed
from wukong.tokenizer import Tokenizer
from wukong.training.compute import Compute, Precision, compute_for

MICRO_BATCH_TOKENS = 8192


class Policy:
    """A language model with its tokenizer; made by `load_policy`.

    Attributes:
        model: the GPT-2, weights in float32, in eval mode.
        tokenizer: its tokenizer and chat template.
        name: where it was loaded from.
        sampling: its recommended sampling parameters (generation_config.json), the defaults of `generate`.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        compute: Compute,
        name: str,
        sampling: SamplingParameters = OWN_DISTRIBUTION,
    ) -> None:
        self.model, self.tokenizer, self.compute, self.name = model.to(compute.device).eval(), tokenizer, compute, name
        self.sampling = sampling

    @cached_property
    def _decoder(self) -> LanguageModel:
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
            prompts: a prompt listed n times gets n different responses. Conversations that do not fit the context lose
                their oldest turns.
            max_new_tokens: maximum length of a response; by default 128, or half of the model's context if less.
            temperature: divides the logits; 0 selects the most likely token.
            top_k: sample from the k most likely tokens; 0 means all.
            top_p: sample from the most likely tokens with this total probability; 1 means all. Absent values are the
                model's own (`sampling`), top_k and top_p only without a temperature.
            seed: the same seed gives the same response to a prompt, independent of the rest of the list.
            batch_size: the number of responses decoded together.

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
        # Seeded as in `wukong sample`, so that both give the same responses.
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
        """The log-probability (nats) of each token of each response, given the prompt and the preceding tokens.

        Args:
            pairs: (prompt, response) pairs.
            finished: include the closing end-of-text token, as the last one.

        Returns:
            A 1-D float32 CPU tensor per pair, one entry per response token, computed in the model's precision:
            `load_policy(..., precision="float32")` is the most accurate.

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
        """The reward of each response. Only differences between answers to the same prompt are meaningful.

        Args:
            pairs: (prompt, response) pairs. As in training, a prompt that is too long loses its oldest turns, the same
                for all its responses in the list, so that the longest fits.

        Raises:
            UsageError: an empty prompt, or the last turn and the response do not fit the model's context.
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
    """Loads a language model.

    Args:
        source: a model directory of ours or of `transformers`, or a hub id such as "gpt2".
        device: auto, cpu, cuda, cuda:N or mps (an Apple GPU).
        precision: of the matrix products; auto uses bfloat16 where it is faster.
        template: a chat template (alpaca, plain, or a Jinja file) instead of the model's own.

    Raises:
        UsageError: names the invalid file and the problem in one line.
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
    """Loads a reward model: ours, or any GPT-2 sequence classifier with one label.

    Arguments and errors as for `load_policy`.
    """
    model, tokenizer = hub.load_reward(source, template=template)
    return Reward(model, tokenizer, compute_for(precision, device), str(source))


def _check_list(items: Sequence[object], what: str) -> None:
    """Refuses a single prompt in place of a list: it would be split into characters or turns."""
    if isinstance(items, str) or (items and isinstance(items[0], Message | Mapping)):
        raise UsageError(f"expected a list of {what}: put a single one in [ ]")


def _repeats(names: Sequence[str]) -> list[int]:
    """How often each name occurred before; 0 for the first."""
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
