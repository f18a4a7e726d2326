"""The models that people can talk to in the studio, and the service that writes their answers.

It is the service of `wukong serve`: one queue for everybody, batched through the sampler. A model is loaded when
somebody first asks it something, and again when its files have changed since.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from wukong.feedback.store.labels import NotFoundError
from wukong.run_models import best_policy, models_in

if TYPE_CHECKING:
    from wukong.serve.service import Served, Service


class Models:
    """Models by name.

    Args:
        run_dir: the run whose policies are offered.
        named: more of them, name -> directory or hub id.
    """

    def __init__(self, run_dir: Path | None, named: Mapping[str, str]) -> None:
        self.run_dir, self.named = run_dir, named
        self._service: Service | None = None
        self._loaded: dict[str, float] = {}  # when the files of a loaded model were written
        self._loading = asyncio.Lock()

    def sources(self) -> dict[str, str]:
        """Name -> directory or hub id of every model on offer; the run's best one first."""
        best = best_policy(self.run_dir) if self.run_dir else None
        found = sorted(models_in(self.run_dir), key=lambda path: path != best)
        return {path.name: str(path) for path in found} | dict(self.named)

    @property
    def service(self) -> Service:
        """The service, started when it is first needed: most of a studio's visitors only label."""
        if self._service is None:
            from wukong.serve.service import Service

            self._service = Service()
            self._service.start()
        return self._service

    async def load(self, name: str) -> Served:
        """The model of this name. Raises NotFoundError for one that is not on offer, UsageError for a broken one."""
        source = self.sources().get(name)
        if source is None:
            raise NotFoundError("there is no model {name!r} here", name=name)
        async with self._loading:
            now = written(source)
            if self._loaded.get(name) != now:
                self.service.add(await asyncio.to_thread(_load, name, source))
                self._loaded[name] = now
        return self.service.model(name)

    def close(self) -> None:
        """Ends the service; answers that are being written end with an error."""
        if self._service is not None:
            self._service.close()


def _load(name: str, source: str) -> Served:
    from wukong.serve.service import load_model

    return load_model(name, source)


def written(source: str) -> float:
    """When a directory's weights were written; 0 for a hub id, which does not change under us."""
    return max((path.stat().st_mtime for path in Path(source).glob("model*.safetensors")), default=0.0)
