"""The tokenizer of a GGUF file. It names its way of splitting text instead of holding it; the rules below are those of
the releases that llama.cpp gives these names to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wukong.chat_template import DEFAULT_TEMPLATE
from wukong.errors import UsageError, brief
from wukong.gguf_import.container import GGUFFile
from wukong.tokenizer import Tokenizer
from wukong.tokenizer_kinds import (
    LLAMA_PATTERN,
    QWEN_PATTERN,
    begin_with,
    byte_level,
    bytes_definition,
    split_by,
)

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Types of tokens. Control tokens are special; unused ones fill the vocabulary up to a round number."""


@dataclass(frozen=True)
class _Splitting:
    splitter: dict[str, Any]
    normalizer: dict[str, Any] | None = None
    ignore_merges: bool = False
    begins: bool = False
    """Whether a text begins with bos_token, where the file does not say."""
    ends: tuple[str, ...] = ()
    """Tokens that end an answer, besides those that the file names."""


_DIGITS = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level()]}
_LLAMA3 = _Splitting(
    split_by(LLAMA_PATTERN), ignore_merges=True, begins=True, ends=("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>")
)
_QWEN2 = _Splitting(split_by(QWEN_PATTERN), {"type": "NFC"}, ends=("<|im_end|>", "<|endoftext|>"))
SPLITTINGS = {
    "gpt-2": _Splitting(byte_level()),
    "smollm": _Splitting(_DIGITS),
    "llama-bpe": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
}
"""`tokenizer.ggml.pre` -> how text is split."""


def tokenizer_of(file: GGUFFile) -> Tokenizer:
    """Raises UsageError for a tokenizer that is not byte-level BPE, or is split in a way not known here."""
    kind = file.get("tokenizer.ggml.model", str)
    if kind != "gpt2":
        raise UsageError(f"{file.path}: the tokenizer is {brief(kind)}, only byte-level BPE ('gpt2') can be imported")
    name = file.get("tokenizer.ggml.pre", str, "default")
    if name not in SPLITTINGS:
        known = ", ".join(SPLITTINGS)
        raise UsageError(f"{file.path}: tokenizer.ggml.pre is {brief(name)}, known are {known}")
    way = SPLITTINGS[name]
    texts, vocab, added = _tokens(file)
    roles = _roles(file, texts)
    post_processor = None
    if file.get("tokenizer.ggml.add_bos_token", bool, way.begins) and "bos_token" in roles:
        post_processor = begin_with(roles["bos_token"], vocab, added)
    merges = [merge.split(" ") for merge in file.get("tokenizer.ggml.merges", list)]
    definition = bytes_definition(
        vocab, merges, added, splitter=way.splitter, normalizer=way.normalizer, post_processor=post_processor,
        ignore_merges=way.ignore_merges,
    )  # fmt: skip
    template = file.get("tokenizer.chat_template", str, DEFAULT_TEMPLATE)
    try:
        return Tokenizer(definition, roles=roles, end_ids=_ends(file, texts, way.ends), template=template)
    except UsageError as error:
        raise UsageError(f"{file.path}: {error}") from None


def _tokens(file: GGUFFile) -> tuple[list[str], dict[str, int], list[dict[str, Any]]]:
    """(the texts by id, vocabulary, added tokens), without the unused tokens at the end."""
    texts: list[str] = file.get("tokenizer.ggml.tokens", list)
    kinds: Sequence[int] = file.get("tokenizer.ggml.token_type", list, [NORMAL] * len(texts))
    if len(kinds) != len(texts):
        raise UsageError(f"{file.path}: {len(texts)} tokens, but {len(kinds)} types of tokens")
    length = len(texts)
    while length and kinds[length - 1] == UNUSED:
        length -= 1
    last = max((i for i in range(length) if kinds[i] not in (CONTROL, USER_DEFINED)), default=-1)
    added = [
        {"id": i, "content": texts[i], "special": kinds[i] == CONTROL, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for i in range(length)
        if kinds[i] in (CONTROL, USER_DEFINED)
    ]
    return texts[:length], {text: i for i, text in enumerate(texts[: last + 1])}, added


def _roles(file: GGUFFile, texts: Sequence[str]) -> dict[str, str]:
    """Role -> text of the token that the metadata give it."""
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    roles = {}
    for name, role in names.items():
        if (key := f"tokenizer.ggml.{name}_token_id") in file.metadata:
            roles[role] = texts[_index(file, key, len(texts))]
    return roles


def _ends(file: GGUFFile, texts: Sequence[str], usual: Sequence[str]) -> list[int]:
    keys = [f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom")]
    named = [_index(file, key, len(texts)) for key in keys if key in file.metadata]
    return list(dict.fromkeys([*named, *(texts.index(text) for text in usual if text in texts)]))


def _index(file: GGUFFile, key: str, length: int) -> int:
    index: int = file.get(key, int)
    if not 0 <= index < length:
        raise UsageError(f"{file.path}: {key} is {index}, but there are {length} tokens")
    return index
