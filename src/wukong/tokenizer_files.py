"""Reads a tokenizer from the files of a model directory: tokens, splitting, roles, end tokens, chat template.

The rules are those of `transformers` 5: `tokenizer_config.json` names the class. GPT-2's class (or none) splits text as
GPT-2 does and reads `add_prefix_space` there; any other uses `tokenizer.json` as it is. Anything that cannot be
reproduced exactly is refused with a one-line error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wukong.chat_template import DEFAULT_TEMPLATE
from wukong.errors import DataError, UsageError, brief
from wukong.files import numbered_lines, read_json

EOS = "<|endoftext|>"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "config.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "vocab.json",
    "merges.txt",
    "encoder.json",
    "vocab.bpe",
)
LARGEST_JSON = 1 << 28
"""Bytes; eight times the largest tokenizer.json known."""
_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_SPLITTERS = ("Split", "Digits", "Punctuation", "UnicodeScripts", "Whitespace", "WhitespaceSplit", "CharDelimiterSplit")
# Excludes parts whose regular expression or replacement text comes from the file: they could take unbounded time and
# memory.
_NORMALIZERS = ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Strip", "Nmt", "BertNormalizer")
_MODEL_OPTIONS = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer as defined by a directory.

    Attributes:
        definition: the content of a tokenizer.json for the `tokenizers` library.
        roles: role -> text of the special token, e.g. {"eos_token": "<|im_end|>"}.
        end_ids: the tokens that end an answer, from generation_config.json or config.json; may be empty.
        template: the chat template's file or source.
    """

    definition: dict[str, Any]
    roles: dict[str, str]
    end_ids: tuple[int, ...]
    template: str | Path


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UsageError for anything else."""
    try:
        if not file.is_file():
            raise UsageError(f"{file}: {'not a file' if file.exists() else 'no such file'}")
        if file.stat().st_size > LARGEST_JSON:
            raise UsageError(f"{file}: larger than {LARGEST_JSON >> 20} MiB")
        content = read_json(file)
    except RecursionError:
        raise UsageError(f"{file}: nested too deeply") from None
    except OSError as error:
        raise UsageError(f"{file}: cannot be read ({error.strerror or error})") from None
    except ValueError as error:  # a number with thousands of digits
        raise UsageError(f"{file}: {error}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{file}: not a JSON object")
    return content


def read_tokenizer(directory: Path) -> TokenizerFiles:
    """Raises UsageError (DataError with the line) for missing or damaged files, or anything but byte-level BPE."""
    config_file = directory / "tokenizer_config.json"
    config = read_object(config_file) if config_file.is_file() else {}
    kind = config.get("tokenizer_class")
    if kind is not None and not isinstance(kind, str):
        raise UsageError(f"{config_file}: tokenizer_class is {brief(kind)}, not a name")
    is_gpt2 = kind is None or kind.removesuffix("Fast") == "GPT2Tokenizer"
    vocab: Any
    if (file := directory / "tokenizer.json").is_file():
        definition = _checked(file, read_object(file), is_gpt2)
        vocab, merges = definition["model"].get("vocab"), definition["model"]["merges"]
    else:
        file, vocab, merges = _read_vocabulary(directory)
        definition, is_gpt2 = {"added_tokens": []}, True
    if not isinstance(vocab, dict) or not all(type(index) is int for index in vocab.values()):
        raise UsageError(f"{file}: not a vocabulary (an object of token: id)")
    roles, named = _roles(directory, config_file, config, is_gpt2 and EOS in vocab)
    special, listed = [*roles.values(), *named], definition["added_tokens"]
    tokens = _added_tokens(directory, config_file, config, listed, vocab, special, roles.get("eos_token"))
    if is_gpt2:
        prefix = config.get("add_prefix_space", False)
        if type(prefix) is not bool:
            raise UsageError(f"{config_file}: add_prefix_space is {brief(prefix)}, neither true nor false")
        post_processor = definition.get("post_processor")
        if config.get("add_bos_token") is True and file.name != "tokenizer.json" and "bos_token" in roles:
            post_processor = _begin_with(roles["bos_token"], vocab, tokens)
        definition = gpt2_definition(vocab, merges, tokens, add_prefix_space=prefix, post_processor=post_processor)
    else:
        definition = {**definition, "added_tokens": tokens}
    return TokenizerFiles(definition, roles, end_ids(directory), _stored_template(directory, config_file, config))


def gpt2_definition(
    vocab: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    added: Sequence[Mapping[str, Any]] = (),
    *,
    add_prefix_space: bool = False,
    post_processor: Any = None,
) -> dict[str, Any]:
    """The content of a tokenizer.json equivalent to GPT-2's tokenizer."""
    byte_level = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(added),
        "normalizer": None,
        "pre_tokenizer": {**byte_level, "add_prefix_space": add_prefix_space},
        "post_processor": post_processor,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": dict(vocab),
            "merges": [list(pair) for pair in merges],
        },
    }


def is_gpt2s(definition: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json splits text as GPT-2 does, ignoring add_prefix_space."""
    splitter = definition.get("pre_tokenizer")
    return (
        not definition.get("normalizer")
        and isinstance(splitter, dict)
        and splitter.get("type") == "ByteLevel"
        and splitter.get("use_regex", True) is True
    )


def end_ids(directory: Path) -> tuple[int, ...]:
    """The `eos_token_id`s of generation_config.json, else of config.json."""
    for name in ("generation_config.json", "config.json"):
        if not (file := directory / name).is_file():
            continue
        found = read_object(file).get("eos_token_id")
        if found is None:
            continue
        ids = found if isinstance(found, list) else [found]
        if not all(type(index) is int and index >= 0 for index in ids):
            raise UsageError(f"{file}: eos_token_id is {brief(found)}, neither a token id nor a list of them")
        return tuple(ids)
    return ()


# ------------------------------------------------------------------------------------------------- vocab and merges


def pair_of(merge: Any) -> tuple[str, str]:
    """Raises ValueError or TypeError for anything but a merge."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    if not (isinstance(left, str) and isinstance(right, str) and left and right):
        raise ValueError("a merge is two tokens")
    return left, right


def _read_vocabulary(directory: Path) -> tuple[Path, Any, list[tuple[str, str]]]:
    for vocab_name, merges_name in (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")):
        if (file := directory / vocab_name).is_file():
            return file, read_object(file), _read_merges(directory / merges_name)
    raise UsageError(f"{directory}: no tokenizer here (tokenizer.json, vocab.json or encoder.json)")


def _read_merges(file: Path) -> list[tuple[str, str]]:
    merges = []
    for number, line in numbered_lines(file):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        try:
            merges.append(pair_of(line))
        except ValueError:
            raise DataError("a merge is two tokens separated by a space", file=file, line=number) from None
    return merges


def _checked(file: Path, content: dict[str, Any], is_gpt2: bool) -> dict[str, Any]:
    """A tokenizer.json in which everything that affects tokens is supported; merges as pairs.

    Raises UsageError if it would not tokenise as GPT-2 does, or as its class would.
    """
    model = content.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE" or "merges" not in model:
        raise UsageError(f"{file}: not a BPE tokenizer like GPT-2's")
    for name in _MODEL_OPTIONS:
        if model.get(name) and (is_gpt2 or name != "ignore_merges"):
            raise UsageError(f"{file}: model.{name} is {brief(model[name])}, which is not supported")
    decoder = content.get("decoder")
    if not isinstance(decoder, dict) or decoder.get("type") != "ByteLevel":
        raise UsageError(f"{file}: its decoder is not ByteLevel, so its tokens are not bytes")
    if is_gpt2 and not is_gpt2s(content):
        raise UsageError(
            f"{file}: text is not split as GPT-2 does (ByteLevel, no normalizer); if this is intended, "
            'tokenizer_config.json must say "tokenizer_class": "PreTrainedTokenizerFast"'
        )
    _check_parts(file, content.get("normalizer"), "normalizer", "normalizers", _NORMALIZERS)
    splitters = _check_parts(
        file, content.get("pre_tokenizer"), "pre_tokenizer", "pretokenizers", (*_SPLITTERS, "ByteLevel")
    )
    if [part["type"] for part in splitters].count("ByteLevel") != 1 or splitters[-1]["type"] != "ByteLevel":
        raise UsageError(f"{file}: its pre_tokenizer does not end with ByteLevel, so its tokens are not bytes")
    try:
        merges = [pair_of(merge) for merge in model["merges"]]
        tokens = [_token(file, token) for token in content.get("added_tokens") or []]
    except (ValueError, TypeError):
        raise UsageError(f"{file}: its merges or added_tokens are damaged") from None
    kept = {name: content.get(name) for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder")}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": tokens,
        **kept,
        "model": {**model, "type": "BPE", "merges": [list(pair) for pair in merges]},
    }


def _check_parts(file: Path, part: Any, name: str, plural: str, known: Sequence[str]) -> list[dict[str, Any]]:
    """The parts of a normalizer or pre-tokenizer, in order; UsageError for one not in `known`."""
    if part is None:
        return []
    if isinstance(part, dict) and part.get("type") == "Sequence" and isinstance(part.get(plural), list):
        parts = part[plural]
    else:
        parts = [part]
    for one in parts:
        if not isinstance(one, dict) or one.get("type") not in known:
            found = one.get("type") if isinstance(one, dict) else one
            raise UsageError(f"{file}: {name} {brief(found)} is not supported ({', '.join(known)})")
        if one["type"] == "Split" and (problem := _pattern_problem(one.get("pattern"))):
            raise UsageError(f"{file}: {name} Split: {problem}")
    result: list[dict[str, Any]] = parts
    return result


def _pattern_problem(pattern: Any) -> str | None:
    """Why a pattern is refused: nested repetitions can take exponential time."""
    if isinstance(pattern, dict) and list(pattern) == ["String"] and isinstance(pattern["String"], str):
        return None
    if not isinstance(pattern, dict) or list(pattern) != ["Regex"] or not isinstance(pattern["Regex"], str):
        return "its pattern is neither a String nor a Regex"
    if len(pattern["Regex"]) > 2000:
        return "its regular expression is longer than 2000 characters"
    if _repeats_repetitions(pattern["Regex"]) or re.search(r"\\[1-9gk]", pattern["Regex"]):
        return "its regular expression could take exponential time (nested repetition or back-reference)"
    return None


def _repeats_repetitions(pattern: str) -> bool:
    """Whether a group that contains *, +, {n,} or an alternative is itself repeated by *, + or {."""
    plain = re.sub(r"\\[pP]\{[^}]*\}|\\.", "x", pattern)  # escapes, \p{L} among them, are single characters
    plain = re.sub(r"\[(?:\^)?\]?[^\]]*\]", "x", plain)  # so are classes
    groups: list[bool] = []
    closed = False  # whether the preceding item is a group with a repetition inside
    for i, c in enumerate(plain):
        if c in "*+{" and closed:
            return True
        closed = False
        if c == "(":
            groups.append(False)
        elif c == ")" and groups:
            closed = groups.pop()
            if groups:
                groups[-1] |= closed
        elif groups and (c in "*+|" or (c == "{" and i)):
            groups[-1] = True
    return False


# ------------------------------------------------------------------------------------------- added and special tokens


def _token(file: Path, token: Any, index: Any = None) -> dict[str, Any]:
    """An added token with all its flags. Raises UsageError for wrong types."""
    if not isinstance(token, dict) or not isinstance(token.get("content"), str) or not token["content"]:
        raise UsageError(f"{file}: added token {brief(token)} has no content")
    index = token.get("id") if index is None else index
    flags = {name: token.get(name, False) for name in ("single_word", "lstrip", "rstrip", "special")}
    flags["normalized"] = token.get("normalized", not flags["special"])
    if type(index) is not int or index < 0 or not all(type(flag) is bool for flag in flags.values()):
        raise UsageError(f"{file}: added token {brief(token)} is damaged (an id or flag of the wrong type)")
    return {"id": index, "content": token["content"], **flags}


def _text_of(file: Path, name: str, value: Any) -> str:
    """The text of a token, given as text or as an object with content."""
    text = value.get("content") if isinstance(value, dict) else value
    if not isinstance(text, str) or not text:
        raise UsageError(f"{file}: {name} is {brief(value)}, neither text nor a token")
    return text


def _roles(
    directory: Path, config_file: Path, config: Mapping[str, Any], with_defaults: bool
) -> tuple[dict[str, str], list[str]]:
    """(role -> text of each token with a role, the texts of further special tokens)."""
    said: dict[str, tuple[Path, Any]] = {name: (config_file, value) for name, value in config.items()}
    map_file = directory / "special_tokens_map.json"
    if "added_tokens_decoder" not in config and map_file.is_file():
        said |= {name: (map_file, value) for name, value in read_object(map_file).items()}
    roles = {name: EOS for name in ("bos_token", "eos_token", "unk_token") if with_defaults}
    if with_defaults and not config and not map_file.is_file():
        roles["pad_token"] = EOS
    for name, (file, value) in said.items():
        if name in _ROLES and value is None:
            roles.pop(name, None)
        elif name in _ROLES or (name.endswith("_token") and isinstance(value, str | dict)):
            roles[name] = _text_of(file, name, value)
    further: list[str] = []
    for name in ("additional_special_tokens", "extra_special_tokens"):
        file, value = said.get(name, (config_file, None))
        if isinstance(value, dict):
            value = list(value.values())
        if value is not None and not isinstance(value, list):
            raise UsageError(f"{file}: {name} is {brief(value)}, not a list of tokens")
        further += [_text_of(file, name, token) for token in value or []]
    order = {name: i for i, name in enumerate(_ROLES)}
    return dict(sorted(roles.items(), key=lambda role: order.get(role[0], len(order)))), further


def _added_tokens(
    directory: Path, config_file: Path, config: Mapping[str, Any], listed: Sequence[dict[str, Any]],
    vocab: Mapping[str, int], special: Sequence[str], end: str | None,
) -> list[dict[str, Any]]:  # fmt: skip
    """All added tokens by id: those listed in any file, then special ones that are in no list."""
    tokens: dict[str, dict[str, Any]] = {}

    def add(file: Path, token: dict[str, Any]) -> None:
        known = tokens.setdefault(token["content"], token)
        if known["id"] != token["id"]:
            raise UsageError(f"{file}: the token {token['content']!r} has the ids {known['id']} and {token['id']}")

    for token in listed:
        add(directory / "tokenizer.json", token)
    decoder = config.get("added_tokens_decoder")
    if decoder is not None:
        if not isinstance(decoder, dict) or not all(re.fullmatch(r"[0-9]{1,9}", index) for index in decoder):
            raise UsageError(f"{config_file}: added_tokens_decoder is not an object of id: token")
        for index, token in decoder.items():
            add(config_file, _token(config_file, token, int(index)))
    elif (file := directory / "added_tokens.json").is_file():
        for text, index in read_object(file).items():
            add(file, _token(file, {"content": text, "id": index, "special": text in special}))
    behind = 1 + max([*vocab.values(), *(token["id"] for token in tokens.values())], default=-1)
    for text in dict.fromkeys(special):
        if text not in tokens:
            if text == end and text not in vocab:
                raise UsageError(f"{directory}: the vocabulary has no {end} token, with which answers end")
            index = vocab.get(text, behind)
            behind += index == behind
            add(config_file, _token(config_file, {"content": text, "id": index, "special": True}))
        tokens[text] = {**tokens[text], "special": True}
    return sorted(tokens.values(), key=lambda token: token["id"])


def _begin_with(text: str, vocab: Mapping[str, int], tokens: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A post-processor that prepends a token to each text."""
    index = next((token["id"] for token in tokens if token["content"] == text), vocab.get(text))
    first = {"SpecialToken": {"id": text, "type_id": 0}}
    whole, other = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [first, whole],
        "pair": [first, whole, other],
        "special_tokens": {text: {"id": text, "ids": [index], "tokens": [text]}},
    }


# ------------------------------------------------------------------------------------------------------- chat template


def _stored_template(directory: Path, config_file: Path, config: Mapping[str, Any]) -> str | Path:
    """The default template in a file, else in tokenizer_config.json, else Alpaca's."""
    file = directory / "chat_template.jinja"
    if file.is_file():
        return file
    names = sorted(path.stem for path in (directory / "additional_chat_templates").glob("*.jinja"))
    if names:
        raise UsageError(f"{directory}: {_no_default(names)}")
    stored = config.get("chat_template")
    if isinstance(stored, list):
        stored = dict(_named(config_file, stored))
    if isinstance(stored, dict):
        if "default" not in stored:
            raise UsageError(f"{config_file}: {_no_default(sorted(map(str, stored)))}")
        stored = stored["default"]
    if stored is None:
        return DEFAULT_TEMPLATE
    if not isinstance(stored, str):
        raise UsageError(f"{config_file}: chat_template is {brief(stored)}, not a text")
    return stored if "{{" in stored or "{%" in stored else "{{ '' }}" + stored


def _named(file: Path, stored: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    for one in stored:
        if not isinstance(one, dict) or not isinstance(one.get("name"), str) or "template" not in one:
            raise UsageError(f"{file}: chat_template lists {brief(one)}, not a name and a template")
        yield one["name"], one["template"]


def _no_default(names: Sequence[str]) -> str:
    shown = ", ".join(names) or "none"
    return f"no default among its chat templates ({brief(shown)}); save one to a file and pass it with --template"
