"""Models that take answers apart: loaded when somebody first opens an answer as tokens, one answer at a time."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from pathlib import Path
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
        self._loaded: OrderedDict[tuple[str, bool, float], Inspector] = OrderedDict()
        self._busy = asyncio.Lock()

    async def inspect(self, source: str, answer: SpokenAnswer, raw: bool = False) -> dict[str, Any]:
        """The answer as tokens, by the model of this directory or hub id. Raises as `wukong.inspection`."""
        async with self._busy:
            return await asyncio.to_thread(self._inspect, source, answer, raw)

    def _inspect(self, source: str, answer: SpokenAnswer, raw: bool) -> dict[str, Any]:
        from wukong.inspection import load_inspector

        key = (source, raw, written(source))
        if key not in self._loaded:
            self._loaded[key] = load_inspector(source, raw=raw)
        self._loaded.move_to_end(key)
        while len(self._loaded) > KEPT:
            self._loaded.popitem(last=False)
        inspect = self._loaded[key]
        found = inspect(answer.messages, answer.text, finished=answer.finished, temperature=answer.temperature)
        names = {name: Path(getattr(found, name)).name for name in ("reference", "reward_model")}
        return vars(found) | names | {"model": answer.model}
