"""Models that take answers apart: loaded when somebody first opens an answer as tokens, one answer at a time."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from wukong.feedback.store.chats import SpokenAnswer
from wukong.web.models import written

if TYPE_CHECKING:
    from wukong.inspection import Inspector

KEPT = 3
"""Policies that stay loaded, with their references and reward models."""


class Inspectors:
    """Inspectors by model, those used last."""

    def __init__(self) -> None:
        self._loaded: OrderedDict[tuple[object, ...], Inspector] = OrderedDict()
        self._busy = asyncio.Lock()

    async def inspect(
        self, source: str, answer: SpokenAnswer, reference: str | None = None, reward_model: str | None = None,
        raw: bool = False,
    ) -> dict[str, Any]:  # fmt: skip
        """The answer as tokens. Arguments and errors as for `wukong.inspection.load_inspector`."""
        async with self._busy:
            return await asyncio.to_thread(self._inspect, source, answer, reference, reward_model, raw)

    def _inspect(
        self, source: str, answer: SpokenAnswer, reference: str | None, reward_model: str | None, raw: bool
    ) -> dict[str, Any]:
        from wukong.inspection import load_inspector

        key = (source, reference, reward_model, raw, written(source))
        if key not in self._loaded:
            self._loaded[key] = load_inspector(source, reference, reward_model, raw=raw)
        self._loaded.move_to_end(key)
        while len(self._loaded) > KEPT:
            self._loaded.popitem(last=False)
        inspect = self._loaded[key]
        found = inspect(answer.messages, answer.text, finished=answer.finished, temperature=answer.temperature)
        return found.shown(answer.model)
