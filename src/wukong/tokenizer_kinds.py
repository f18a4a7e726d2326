"""What the tokenizer classes of `transformers` do: the content of a tokenizer.json for GPT-2's, Qwen's and BERT's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wukong.tokenizer_checks import PIECE

EOS = "<|endoftext|>"
WORD_ROLES = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
"""The special tokens of a `BertTokenizer` whose files name none."""
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"


def _pattern(digits: str) -> str:
    """How the Qwen and Llama 3 families split text into words; `digits`: how they split numbers."""
    return (
        CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


QWEN_PATTERN = _pattern(r"\p{N}")
LLAMA_PATTERN = _pattern(r"\p{N}{1,3}")


def byte_level(add_prefix_space: bool = False, use_regex: bool = True) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def split_by(pattern: str) -> dict[str, Any]:
    """A pre-tokenizer that splits by a regular expression instead of GPT-2's."""
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, byte_level(use_regex=False)]}


def bytes_definition(
    vocab: Mapping[str, int],
    merges: Sequence[Sequence[str]],
    added: Sequence[Mapping[str, Any]] = (),
    *,
    splitter: Mapping[str, Any],
    normalizer: Mapping[str, Any] | None = None,
    post_processor: Any = None,
    ignore_merges: bool = False,
) -> dict[str, Any]:
    """The content of a tokenizer.json for byte-level BPE."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(added),
        "normalizer": normalizer,
        "pre_tokenizer": splitter,
        "post_processor": post_processor,
        "decoder": byte_level(add_prefix_space=True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": ignore_merges,
            "vocab": dict(vocab),
            "merges": [list(pair) for pair in merges],
        },
    }


def gpt2_definition(
    vocab: Mapping[str, int],
    merges: Sequence[Sequence[str]],
    added: Sequence[Mapping[str, Any]] = (),
    *,
    add_prefix_space: bool = False,
    post_processor: Any = None,
) -> dict[str, Any]:
    """The content of a tokenizer.json equivalent to GPT-2's tokenizer."""
    return bytes_definition(
        vocab, merges, added, splitter=byte_level(add_prefix_space), post_processor=post_processor
    )  # fmt: skip


def qwen_definition(
    vocab: Mapping[str, int],
    merges: Sequence[Sequence[str]],
    added: Sequence[Mapping[str, Any]] = (),
    *,
    post_processor: Any = None,
) -> dict[str, Any]:
    """The content of a tokenizer.json equivalent to the tokenizer of Qwen2, 2.5 and 3."""
    splitter = split_by(QWEN_PATTERN)
    return bytes_definition(
        vocab, merges, added, splitter=splitter, normalizer={"type": "NFC"}, post_processor=post_processor
    )  # fmt: skip


def words_definition(
    vocab: Mapping[str, int],
    added: Sequence[Mapping[str, Any]],
    roles: Mapping[str, str],
    *,
    lowercase: bool,
    split_chinese: bool,
    strip_accents: bool | None,
) -> dict[str, Any]:
    """The content of a tokenizer.json equivalent to BERT's tokenizer (Devlin et al. 2018): words at white space and
    punctuation, Chinese characters one by one, each the longest pieces of the vocabulary.

    Args:
        roles: with unk_token, cls_token (begins a text) and sep_token (ends it).
        lowercase: whether text is lower-cased.
        split_chinese: whether each Chinese character is a word.
        strip_accents: None means as `lowercase`.
    """
    first, last, unknown = roles["cls_token"], roles["sep_token"], roles["unk_token"]
    ids = {token["content"]: token["id"] for token in added}
    begin, end = ({"SpecialToken": {"id": text, "type_id": 0}} for text in (first, last))
    text, other = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(added),
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": split_chinese,
            "strip_accents": strip_accents,
            "lowercase": lowercase,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, text, end],
            "pair": [begin, text, end, other, end],
            "special_tokens": {
                token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in (first, last)
            },
        },
        "decoder": {"type": "WordPiece", "prefix": PIECE, "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": unknown,
            "continuing_subword_prefix": PIECE,
            "max_input_chars_per_word": 100,
            "vocab": dict(vocab),
        },
    }  # fmt: skip


def begin_with(text: str, vocab: Mapping[str, int], added: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A post-processor that prepends a token to each text."""
    index = next((token["id"] for token in added if token["content"] == text), vocab.get(text))
    first = {"SpecialToken": {"id": text, "type_id": 0}}
    whole, other = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [first, whole],
        "pair": [first, whole, other],
        "special_tokens": {text: {"id": text, "ids": [index], "tokens": [text]}},
    }


def is_words(definition: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json is BERT's WordPiece and not byte-level BPE."""
    return bool(definition["model"].get("type") == "WordPiece")


def is_gpt2s(definition: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json makes tokens as GPT-2 does, ignoring add_prefix_space."""
    splitter = definition.get("pre_tokenizer")
    return (
        not definition.get("normalizer")
        and isinstance(splitter, dict)
        and splitter.get("type") == "ByteLevel"
        and splitter.get("use_regex", True) is True
        and not definition["model"].get("ignore_merges")
    )
