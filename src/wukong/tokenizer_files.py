"""Reads a tokenizer from the files of a model directory: tokens, splitting, roles, end tokens, chat template.

The rules are those of `transformers`: `tokenizer_config.json` names the class, and the classes of GPT-2, Qwen and BERT
read options there. Where `tokenizer.json` splits text in another way than the class does, the file counts: SmolLM2's
class is GPT-2's, but it was trained with its digits split apart, as `transformers` 4 and `tokenizers` do (version 5
ignores it). Anything that cannot be reproduced exactly is refused with a one-line error.
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
from wukong.tokenizer_checks import added_token, checked_definition, pair_of
from wukong.tokenizer_kinds import (
    EOS,
    WORD_ROLES,
    begin_with,
    gpt2_definition,
    is_gpt2s,
    is_words,
    qwen_definition,
    words_definition,
)

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
    "vocab.txt",
)
LARGEST_JSON = 1 << 28
"""Bytes; eight times the largest tokenizer.json known."""
_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
GPT2, QWEN, BERT = "GPT2Tokenizer", "Qwen2Tokenizer", "BertTokenizer"
_CLASSES = {"gpt2": GPT2, "qwen2": QWEN, "qwen3": QWEN, "bert": BERT}
"""The class of a model's type, if no file names one."""
_SPLIT_CHINESE = "tokenize_chinese_chars"


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
    """Raises UsageError (DataError with the line) for missing or damaged files, or a tokenizer of another kind."""
    config_file = directory / "tokenizer_config.json"
    config = read_object(config_file) if config_file.is_file() else {}
    kind = _class_of(directory, config_file, config)
    file, stored = _read_definition(directory, kind)
    vocab = stored["model"].get("vocab")
    if not isinstance(vocab, dict) or not all(type(index) is int for index in vocab.values()):
        raise UsageError(f"{file}: not a vocabulary (an object of token: id)")
    if is_words(stored) is not (kind == BERT):
        found = "WordPiece" if is_words(stored) else "BPE"
        raise UsageError(f"{file}: a {found} tokenizer, but its tokenizer_class is {kind}")
    from_lists = file.name != "tokenizer.json"
    roles, named = _roles(directory, config_file, config, _usual_roles(directory, config, kind, vocab, from_lists))
    if kind == BERT:
        if missing := [roles[name] for name in ("unk_token", "cls_token", "sep_token") if roles[name] not in vocab]:
            raise UsageError(f"{file}: has no {missing[0]} token, which a BERT tokenizer needs")
        roles = {"bos_token": roles["cls_token"], "eos_token": roles["sep_token"], **roles}
    special = [*roles.values(), *named]
    tokens = _added_tokens(
        directory, config_file, config, stored["added_tokens"], vocab, special, roles.get("eos_token")
    )
    definition = _built(config_file, config, kind, {**stored, "added_tokens": tokens}, roles, from_lists)
    return TokenizerFiles(definition, roles, end_ids(directory), _stored_template(directory, config_file, config))


def _class_of(directory: Path, config_file: Path, config: Mapping[str, Any]) -> str:
    """The tokenizer class, as `transformers` finds it: named in tokenizer_config.json, else in config.json, else that
    of the model's type."""
    file, kind = config_file, config.get("tokenizer_class")
    if kind is None and (directory / "config.json").is_file():
        file = directory / "config.json"
        model = read_object(file)
        kind = model.get("tokenizer_class") or _CLASSES.get(str(model.get("model_type")))
    if kind is None:
        only_words = (directory / "vocab.txt").is_file() and not (directory / "tokenizer.json").is_file()
        kind = BERT if only_words else GPT2
    if not isinstance(kind, str):
        raise UsageError(f"{file}: tokenizer_class is {brief(kind)}, not a name")
    return kind.removesuffix("Fast")


def _read_definition(directory: Path, kind: str) -> tuple[Path, dict[str, Any]]:
    """(the file, the content of tokenizer.json or as much of it as the lists of a vocabulary say)."""
    if (file := directory / "tokenizer.json").is_file():
        return file, checked_definition(file, read_object(file))
    if kind == BERT:
        file = directory / "vocab.txt"
        vocab = {token: number - 1 for number, token in numbered_lines(file)}
        return file, {"added_tokens": [], "model": {"type": "WordPiece", "vocab": vocab}}
    if kind not in (GPT2, QWEN):
        raise UsageError(f"{directory}: no tokenizer here (a {kind} is read from tokenizer.json)")
    file, vocab, merges = _read_vocabulary(directory)
    return file, {"added_tokens": [], "model": {"type": "BPE", "vocab": vocab, "merges": merges}}


def _usual_roles(
    directory: Path, config: Mapping[str, Any], kind: str, vocab: Mapping[str, int], from_lists: bool
) -> dict[str, str]:
    """The roles that a class gives to tokens unless its files say otherwise."""
    if kind == BERT:
        return dict(WORD_ROLES)
    if kind == QWEN and from_lists:
        return dict.fromkeys(("eos_token", "unk_token", "pad_token"), EOS)
    if kind != GPT2 or EOS not in vocab:
        return {}
    roles = dict.fromkeys(("bos_token", "eos_token", "unk_token"), EOS)
    if not config and not (directory / "special_tokens_map.json").is_file():
        roles["pad_token"] = EOS
    return roles


def _built(
    config_file: Path, config: Mapping[str, Any], kind: str, stored: dict[str, Any], roles: Mapping[str, str],
    from_lists: bool,
) -> dict[str, Any]:  # fmt: skip
    """The definition as its class makes it: GPT-2's and BERT's read options in tokenizer_config.json."""
    model, tokens = stored["model"], stored["added_tokens"]
    if kind == BERT:
        lowercase, split_chinese = (_flag(config_file, config, name) for name in ("do_lower_case", _SPLIT_CHINESE))
        strip = config.get("strip_accents")
        if strip is not None and type(strip) is not bool:
            raise UsageError(f"{config_file}: strip_accents is {brief(strip)}, neither true nor false")
        return words_definition(
            model["vocab"], tokens, roles, lowercase=lowercase, split_chinese=split_chinese, strip_accents=strip
        )
    post_processor = stored.get("post_processor")
    if "add_bos_token" in config or "add_eos_token" in config:  # these replace what tokenizer.json says
        begins = config.get("add_bos_token") is True and "bos_token" in roles
        post_processor = begin_with(roles["bos_token"], model["vocab"], tokens) if begins else None
    if kind == QWEN and from_lists:
        return qwen_definition(model["vocab"], model["merges"], tokens, post_processor=post_processor)
    if kind == GPT2 and (from_lists or is_gpt2s(stored)):
        space = _flag(config_file, config, "add_prefix_space", default=False)
        return gpt2_definition(
            model["vocab"], model["merges"], tokens, add_prefix_space=space, post_processor=post_processor
        )
    return {**stored, "post_processor": post_processor}


def _flag(file: Path, config: Mapping[str, Any], name: str, default: bool = True) -> bool:
    value = config.get(name, default)
    if type(value) is not bool:
        raise UsageError(f"{file}: {name} is {brief(value)}, neither true nor false")
    return value


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


# ------------------------------------------------------------------------------------------- added and special tokens


def _text_of(file: Path, name: str, value: Any) -> str:
    """The text of a token, given as text or as an object with content."""
    text = value.get("content") if isinstance(value, dict) else value
    if not isinstance(text, str) or not text:
        raise UsageError(f"{file}: {name} is {brief(value)}, neither text nor a token")
    return text


def _roles(
    directory: Path, config_file: Path, config: Mapping[str, Any], usual: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """(role -> text of each token with a role, the texts of further special tokens)."""
    said: dict[str, tuple[Path, Any]] = {name: (config_file, value) for name, value in config.items()}
    map_file = directory / "special_tokens_map.json"
    if "added_tokens_decoder" not in config and map_file.is_file():
        said |= {name: (map_file, value) for name, value in read_object(map_file).items()}
    roles = dict(usual)
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
            add(config_file, added_token(config_file, token, int(index)))
    elif (file := directory / "added_tokens.json").is_file():
        for text, index in read_object(file).items():
            add(file, added_token(file, {"content": text, "id": index, "special": text in special}))
    behind = 1 + max([*vocab.values(), *(token["id"] for token in tokens.values())], default=-1)
    for text in dict.fromkeys(special):
        if text not in tokens:
            if text == end and text not in vocab:
                raise UsageError(f"{directory}: the vocabulary has no {end} token, with which answers end")
            index = vocab.get(text, behind)
            behind += index == behind
            add(config_file, added_token(config_file, {"content": text, "id": index, "special": True}))
        tokens[text] = {**tokens[text], "special": True}
    return sorted(tokens.values(), key=lambda token: token["id"])


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
