"""A model's recommended sampling parameters, from its generation_config.json; every tool uses them by default.

A training stage writes them with the model, so that evaluation, chat and server sample alike, and figures of one hold
for the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from wukong.errors import Text, UsageError, brief
from wukong.language import joined
from wukong.options import Options

# Options of `transformers` that we do not support, with the values that have no effect.
_WITHOUT_US: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (1,),
    "encoder_repetition_penalty": (1,),
    "no_repeat_ngram_size": (0,),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "penalty_alpha": (0,),
    "min_p": (0,),
    "top_h": (1,),
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "sequence_bias": ({}, []),
    "bad_words_ids": ([],),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "guidance_scale": (1,),
    "exponential_decay_length_penalty": (),
    "remove_invalid_values": (False,),
}


class RecommendOptions(Options):
    """The sampling parameters that a training stage writes with its model."""

    recommended_temperature: float | None = Field(None, ge=0, le=100)
    """The default temperature of all tools for this model (generation_config.json). When absent, the stage's own
    sampling temperature, or that of the initial model."""


@dataclass(frozen=True)
class SamplingParameters:
    """Sampling parameters.

    Attributes:
        temperature: divides the logits; 0 selects the most likely token.
        top_k, top_p: truncation; 0 and 1 mean none.
        unsupported: other settings in the model's file that are not supported, e.g. "repetition_penalty 1.3".
        is_recommended: whether all values are the model's own.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    unsupported: str = ""
    is_recommended: bool = False

    @classmethod
    def of_generation_config(cls, file: Path, config: Mapping[str, Any]) -> SamplingParameters:
        """Without `do_sample` the temperature decides; `do_sample: false` means greedy decoding.

        Raises UsageError for values of wrong types.
        """
        sample = config.get("do_sample")
        if sample is not None and type(sample) is not bool:
            raise UsageError(f"{file}: do_sample is {brief(sample)}, neither true nor false")
        temperature = _number(file, config, "temperature", 1.0, 0, 100)
        top_k = max(_number(file, config, "top_k", 0, -1, 2**31 - 1, whole=True), 0)  # -1: all, as in vLLM
        top_p = _number(file, config, "top_p", 1.0, 0, 1)
        beyond = [
            f"{name} {value!r}"[:60]
            for name, meaningless in _WITHOUT_US.items()
            if (value := config.get(name)) is not None and value not in meaningless
        ]
        if sample is False or temperature == 0 or top_p == 0:
            temperature, top_k, top_p = 0.0, 0, 1.0
        return cls(float(temperature), int(top_k), float(top_p), ", ".join(beyond), True)

    def as_generation_config(self) -> dict[str, Any]:
        """The equivalent generation_config.json for `transformers`."""
        if self.temperature == 0:
            return {"do_sample": False}
        return {"do_sample": True, "temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}

    def unless_given(
        self, model: str, temperature: float | None, top_k: int | None = None, top_p: float | None = None
    ) -> SamplingParameters:
        """The recommendation with the given values applied: a temperature replaces all of it, top_k or top_p only
        itself.

        Raises UsageError if it is needed and contains unsupported settings.
        """
        if temperature is None and self.unsupported:
            raise UsageError(
                f"{model}: its generation_config.json asks for {self.unsupported}, which is not supported; "
                "give a temperature"
            )
        base = self if temperature is None else SamplingParameters(float(temperature))
        return SamplingParameters(
            base.temperature,
            base.top_k if top_k is None else top_k,
            base.top_p if top_p is None else float(top_p),
            is_recommended=temperature is None and top_k is None and top_p is None,
        )

    def for_training(self, temperature: float | None) -> SamplingParameters:
        """The parameters that a stage writes with its model: these, or `temperature` if given."""
        return self if temperature is None else SamplingParameters(float(temperature))

    @property
    def has_kl(self) -> bool:
        """Whether samples give an estimate of the KL: greedy and truncated ones do not."""
        return self.temperature > 0 and self.top_k == 0 and self.top_p == 1

    def as_dict(self) -> dict[str, Any]:
        """As in records and results."""
        return {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}

    def in_words(self) -> Text:
        """E.g. "temperature 0.5, top-p 0.9 (the model's own)"."""
        words: list[str] = [Text("temperature {value:g}", value=self.temperature)]
        words += [f"top-k {self.top_k}"] * (self.top_k > 0) + [f"top-p {self.top_p:g}"] * (self.top_p < 1)
        said = joined(words)
        if self.is_recommended:
            said = Text("{sampling} (the model's own)", sampling=said)
        if self.unsupported:
            said = Text("{sampling}; {option} is not supported", sampling=said, option=self.unsupported)
        return said


OWN_DISTRIBUTION = SamplingParameters()
"""The model's own distribution, neither sharpened nor truncated; the default without a recommendation."""


def _number(
    file: Path, config: Mapping[str, Any], name: str, default: float, least: float, most: float, whole: bool = False
) -> float:
    value = config.get(name)
    if value is None:
        return default
    if type(value) not in ((int,) if whole else (int, float)) or not least <= value <= most or math.isnan(value):
        raise UsageError(f"{file}: {name} is {str(value)[:40]!r}, not a number from {least:g} to {most:g}")
    result: float = value
    return result
