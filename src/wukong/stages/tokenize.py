"""`wukong tokenize`: text -> a tokenizer and token shards.

In:  documents (any text format), and a tokenizer to use or the size of one to train.
Out: out/tokenizer.json and related files, out/train/ and out/valid/ (token shards).

    wukong tokenize --data corpus.jsonl --vocab-size 4096 --out runs/mine/tokenizer

Byte-level BPE as in GPT-2 (Radford et al. 2019; Sennrich et al. 2016). A hash of its text decides whether a document
goes to the validation shards, so adding documents never moves one between the splits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import Field

from wukong import require
from wukong.console import Bar, console
from wukong.data.instructions import INSTRUCTIONS, load_instructions
from wukong.data.shards import write_shards
from wukong.data.sources import DataOptions
from wukong.data.split import split_by_prompt
from wukong.data.summary import ReadSummary
from wukong.data.text import TextOptions, iter_text
from wukong.errors import Text, UsageError
from wukong.options import StageOptions
from wukong.require import Need
from wukong.tokenizer import DEFAULT_TEMPLATE, EOS, TOKENIZER_FILES, Tokenizer


class TokenizeOptions(StageOptions, TextOptions):
    """Train or load a tokenizer and turn text into token shards."""

    data: list[str]
    """Training text: paths, globs or Hugging Face data set ids."""
    valid_data: list[str] = []
    """Validation text. Default: some of the training documents are held out."""
    valid_fraction: float = Field(0.02, ge=0, lt=1)
    """The fraction of documents held out if there is no --valid-data."""
    tokenizer: str | None = None
    """A tokenizer to use (directory or hub id, e.g. gpt2). Default: train one on the data."""
    vocab_size: int = Field(4096, ge=257, le=1 << 24)
    """Size of the vocabulary to train."""
    instructions: list[str] = []
    """Instruction data to train the tokenizer on too, rendered by the chat template (not added to the shards)."""
    template: str | None = None
    """Chat template: alpaca, plain (texts to continue), or a Jinja file. Default: that of --tokenizer, or alpaca for a
    new one."""


def _instruction_options(options: TokenizeOptions) -> DataOptions:
    """How the instructions are read; `format` and `columns` apply to the text only."""
    return DataOptions(question=options.question, encoding=options.encoding, skip_bad=options.skip_bad)


def needs(options: TokenizeOptions) -> list[Need]:
    texts = [*options.data, *options.valid_data]
    return [
        *require.data(texts, lambda source: iter_text(source, options), no=("rankings", "pairs", "responses")),
        *require.data(options.instructions, require.reader(INSTRUCTIONS, _instruction_options(options))),
        *require.tokenizer(options.tokenizer, options.template),
    ]


def run(options: TokenizeOptions) -> None:
    """Raises UsageError for unusable options, DataError for unusable text."""
    work = require.open_stage("tokenize", options, needs(options))
    if work.done:
        return
    summary = ReadSummary()
    if options.tokenizer:
        tokenizer = Tokenizer.load(options.tokenizer, template=options.template)
    else:
        texts = chain(iter_text(options.data, options), _rendered(options))
        template = options.template or DEFAULT_TEMPLATE
        tokenizer = Tokenizer.train(_counted(Text("training the tokenizer"), texts), options.vocab_size, template)

    def side(index: int) -> Iterator[str]:
        for text in iter_text(options.data, options, summary if index == 0 else None):
            yield from split_by_prompt([text], options.valid_fraction, options.seed)[index]

    valid: Iterable[str]
    if options.valid_data:
        train, valid = iter_text(options.data, options, summary), iter_text(options.valid_data, options)
    else:
        train, valid = side(0), side(1)
    manifests = {
        "train": write_shards(options.out / "train", _counted(Text("tokenising train"), train), tokenizer),
        "valid": write_shards(options.out / "valid", _counted(Text("tokenising valid"), valid), tokenizer),
    }
    console.print(summary.table("text"))
    for name, manifest in manifests.items():
        if not manifest["tokens"]:
            hint = " (give --valid-data or a larger --valid-fraction)" if name == "valid" else ""
            raise UsageError(f"{options.data[0]}: no document for the {name} shards{hint}")
    tokenizer.save(options.out)
    counts = ("tokens", "documents", "bytes")
    work.finish(
        {
            "vocab_size": tokenizer.vocab_size,
            "data": summary.as_dict(),
            **{name: {key: manifest[key] for key in counts} for name, manifest in manifests.items()},
        },
        _made(options.out, manifests),
    )


def _made(out: Path, manifests: dict[str, dict[str, Any]]) -> list[Path]:
    """The tokenizer's files and the shards."""
    names = [name for name in TOKENIZER_FILES if (out / name).is_file()]
    for side, manifest in manifests.items():
        names += [f"{side}/manifest.json", *(f"{side}/{shard['file']}" for shard in manifest["shards"])]
    return [out / name for name in names]


def _rendered(options: TokenizeOptions) -> Iterator[str]:
    """The conversations as a model sees them, so that words of the template and of answers become tokens."""
    if options.instructions:
        untrained = Tokenizer.train([], 257, options.template or DEFAULT_TEMPLATE)
        read = load_instructions(options.instructions, _instruction_options(options))
        console.print(read.summary.table("instructions"))
        for conversation in read.records:
            yield untrained.render(conversation.messages).replace(EOS, "")


def _counted(title: Text, documents: Iterable[str]) -> Iterator[str]:
    """Shows how many documents were read (the total is not known in advance)."""
    first = next(iterator := iter(documents), None)
    with Bar(title, total=0, unit="document") as bar:
        for text in chain([first] if first is not None else [], iterator):
            yield text
            bar.advance()
