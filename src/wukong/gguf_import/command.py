"""`wukong import`: a model in llama.cpp's file format GGUF -> a directory in hub layout.

In:  a GGUF file of a Llama, Qwen2, Qwen2.5 or Qwen3 model, quantised or not.
Out: config.json, generation_config.json, model*.safetensors and the tokenizer's files, which `transformers` opens too.

    wukong import model.gguf --out models/smollm2

Quantised weights are dequantised: the model computes with the numbers that the file stores, but takes their full space.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from wukong.console import Bar, say
from wukong.errors import Text, UsageError
from wukong.files import atomic_directory, disk_errors, write_json
from wukong.gguf_import.container import GGUFFile, open_gguf
from wukong.gguf_import.vocabulary import tokenizer_of
from wukong.gguf_import.weights import config_of, names_of, tensor_of
from wukong.options import Options

SHARD_BYTES = 2 << 30
"""Most bytes of a weights file, unless a single tensor has more; one shard at a time is in memory."""


class ImportOptions(Options):
    """Turn a GGUF file into a model directory."""

    file: Path
    """A GGUF file of a Llama, Qwen2, Qwen2.5 or Qwen3 model."""
    out: Path
    """The directory to write."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """The type of the stored weights; bfloat16 takes half the space and rounds them."""


def run(options: ImportOptions) -> None:
    """Raises UsageError for a file that cannot be imported, before anything is written."""
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise UsageError(f"{options.out}: exists already; delete it, or choose another --out")
    file = open_gguf(options.file)
    config = config_of(file)
    names = list(names_of(file, config))
    tokenizer = tokenizer_of(file)
    if tokenizer.vocab_size > config["vocab_size"]:
        raise UsageError(f"{file.path}: {tokenizer.vocab_size} tokens, but {config['vocab_size']} embeddings")
    ids = {
        "bos_token_id": tokenizer.role_id("bos_token"),
        "eos_token_id": tokenizer.eos_ids[0] if len(tokenizer.eos_ids) == 1 else list(tokenizer.eos_ids),
        "pad_token_id": tokenizer.role_id("pad_token"),
    }
    with atomic_directory(options.out) as staging:
        tokenizer.save(staging, model_max_length=config["max_position_embeddings"])
        write_json(staging / "config.json", {**config, **ids, "dtype": options.dtype})
        write_json(staging / "generation_config.json", ids)
        with disk_errors(options.out):
            parameters = _write_weights(staging, file, config, names, options.dtype)
    say("import: {parameters:,} parameters in {out}", parameters=parameters, out=options.out)
    say("next: wukong chat {out}", out=options.out)


def _write_weights(
    directory: Path, file: GGUFFile, config: dict[str, Any], names: list[tuple[str, str]], dtype: str
) -> int:
    """Writes model.safetensors, or shards and their index; returns the number of parameters."""
    from safetensors.torch import save_file

    shards = list(_shards(file, names, 2 if dtype == "bfloat16" else 4))
    placed, total = {}, 0
    with Bar(Text("importing"), total=len(names), unit="tensor") as bar:
        for number, shard in enumerate(shards, start=1):
            place = f"model-{number:05d}-of-{len(shards):05d}" if len(shards) > 1 else "model"
            tensors = {}
            for name, theirs in shard:
                tensors[theirs] = _stored(tensor_of(file, name, config), dtype)
                placed[theirs] = f"{place}.safetensors"
                total += tensors[theirs].numel()
                bar.advance()
            save_file(tensors, directory / f"{place}.safetensors", metadata={"format": "pt"})
    if len(shards) > 1:
        size = total * (2 if dtype == "bfloat16" else 4)
        write_json(directory / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": placed})
    return total


def _stored(values: Any, dtype: str) -> Any:
    import torch

    return torch.from_numpy(values.copy()).to(getattr(torch, dtype)).contiguous()


def _shards(file: GGUFFile, names: list[tuple[str, str]], width: int) -> Iterator[list[tuple[str, str]]]:
    """The tensors in groups of at most SHARD_BYTES."""
    shard: list[tuple[str, str]] = []
    size = 0
    for name, theirs in names:
        needed = int(file.tensors[name].n_elements) * width
        if shard and size + needed > SHARD_BYTES:
            yield shard
            shard, size = [], 0
        shard.append((name, theirs))
        size += needed
    yield shard
