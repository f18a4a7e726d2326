"""Token shards: a corpus as flat files of token ids, memory-mapped, so it may exceed memory.

A directory holds `manifest.json` and `tokens-00000.bin`, ... (uint16, or uint32 for vocabularies beyond 65,536).
Documents are concatenated, each followed by the end-of-text token. The directory appears only when complete.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wukong import processes
from wukong.errors import DataError, UsageError
from wukong.files import atomic_directory, fingerprint, read_json, write_json
from wukong.seeds import derived_seed, permutation
from wukong.tokenizer import Tokenizer

BATCH_DOCUMENTS = 256
SHARD_TOKENS = 1 << 26


def write_shards(
    directory: Path, documents: Iterable[str], tokenizer: Tokenizer, shard_tokens: int = SHARD_TOKENS
) -> dict[str, Any]:
    """Tokenises the documents, on all cores, into `directory`, atomically. Returns the manifest."""
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
    manifest: dict[str, Any] = {
        "dtype": dtype.name,
        "vocab_size": tokenizer.vocab_size,
        "tokenizer": tokenizer.fingerprint,
        "documents": 0,
        "bytes": 0,
        "shards": [],
    }
    with atomic_directory(directory) as staging:
        iterator = _encoded(documents, tokenizer, manifest)
        pending = list(islice(iterator, 1))
        while pending:
            path = staging / f"tokens-{len(manifest['shards']):05d}.bin"
            tokens = 0
            with path.open("wb") as out:
                while pending and tokens < shard_tokens:
                    out.write(np.asarray(pending[0], dtype=dtype).tobytes())  # tofile hides the error of a full disk
                    tokens += len(pending[0])
                    pending = list(islice(iterator, 1))
            manifest["shards"].append({"file": path.name, "tokens": tokens, "sha256": fingerprint(path)})
        manifest["tokens"] = sum(shard["tokens"] for shard in manifest["shards"])
        write_json(staging / "manifest.json", manifest)
    return manifest


def _encoded(documents: Iterable[str], tokenizer: Tokenizer, manifest: dict[str, Any]) -> Iterator[list[int]]:
    iterator = iter(documents)
    begin = tokenizer.raw_ids("")
    if begin == [tokenizer.eos_id]:  # the end of the document before it is one already
        begin = []
    while batch := list(islice(iterator, BATCH_DOCUMENTS)):
        encoded = tokenizer.encode_batch(batch)
        manifest["documents"] += len(batch)
        manifest["bytes"] += sum(len(text.encode()) for text in batch)
        for ids in encoded:
            yield [*begin, *ids, tokenizer.eos_id]


def read_manifest(directory: Path) -> dict[str, Any]:
    """Raises DataError for an invalid manifest."""
    path = directory / "manifest.json"
    manifest = read_json(path)
    shards = manifest.get("shards") if isinstance(manifest, dict) else None
    sound = (
        isinstance(shards, list)
        and manifest.get("dtype") in ("uint16", "uint32")
        and isinstance(manifest.get("tokenizer"), str)
        and all(isinstance(manifest.get(name), int) and manifest[name] > 0 for name in ("tokens", "bytes"))
        and all(
            isinstance(shard, dict)
            and isinstance(shard.get("file"), str)
            and Path(shard["file"]).name == shard["file"]
            and type(shard.get("tokens")) is int
            and shard["tokens"] > 0
            for shard in shards
        )
    )
    if not sound:
        raise DataError("not the manifest of token shards, or a damaged one; run 'wukong tokenize' again", file=path)
    result: dict[str, Any] = manifest
    return result


@dataclass
class TokenShards:
    """An open directory of shards, read as one long sequence of tokens."""

    manifest: dict[str, Any]
    arrays: list[np.ndarray]
    starts: np.ndarray  # (number of shards + 1,) where each shard begins in the sequence
    _order: tuple[tuple[int, int, int], np.ndarray] | None = None  # the shuffled contexts of the epoch

    @classmethod
    def open(cls, directory: str | Path, tokenizer: Tokenizer) -> TokenShards:
        """Raises UsageError for a missing directory or another tokenizer's tokens, DataError for a damaged shard."""
        directory = Path(directory)
        if not (directory / "manifest.json").exists():
            raise UsageError(f"{directory}: no token shards here; create them with 'wukong tokenize'")
        manifest = read_manifest(directory)
        if manifest["tokenizer"] != tokenizer.fingerprint:
            raise UsageError(f"{directory}: made with a tokenizer other than the model's; run 'wukong tokenize' again")
        arrays: list[np.ndarray] = []
        for shard in manifest["shards"]:
            path, dtype = directory / shard["file"], np.dtype(manifest["dtype"])
            if not path.exists() or path.stat().st_size != shard["tokens"] * dtype.itemsize:
                raise DataError("the shard is missing or truncated; run 'wukong tokenize' again", file=path)
            # Of several processes only the first verifies every byte.
            if processes.is_first() and "sha256" in shard and fingerprint(path) != shard["sha256"]:
                raise DataError("the shard is damaged; run 'wukong tokenize' again with --redo", file=path)
            arrays.append(np.memmap(path, dtype=dtype, mode="r"))
        return cls(manifest, arrays, np.cumsum([0, *(len(a) for a in arrays)]))

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def bytes_per_token(self) -> float:
        result: float = self.manifest["bytes"] / self.manifest["tokens"]
        return result

    def batch(self, step: int, rows: int, context: int, seed: int) -> torch.Tensor:
        """(rows, context + 1) int64: the contexts of a step, a function of the step number.

        Each epoch cuts the sequence at a different offset and shuffles the contexts.
        """
        windows = (len(self) - 1) // context
        spare = len(self) - 1 - windows * context
        picked = []
        for index in range(step * rows, (step + 1) * rows):
            epoch, place = divmod(index, windows)
            if self._order is None or self._order[0] != (windows, seed, epoch):
                self._order = (windows, seed, epoch), permutation(windows, seed, "windows", epoch)
            offset = derived_seed(seed, "offset", epoch) % (spare + 1)
            picked.append(self.window(offset + int(self._order[1][place]) * context, context + 1))
        return torch.from_numpy(np.stack(picked))

    def window(self, start: int, length: int) -> np.ndarray:
        """(length,) int64, starting at token `start`; may cross shards."""
        parts, shard = [], int(np.searchsorted(self.starts, start, side="right")) - 1
        while length > 0:
            part = self.arrays[shard][start - self.starts[shard] :][:length]
            parts.append(part)
            start, length, shard = start + len(part), length - len(part), shard + 1
        return np.concatenate(parts).astype(np.int64)
