"""Byte-level BPE as GPT-2's, trained here or loaded, and the chat template that turns messages into tokens.

What people write never becomes a special token: the characters "<|endoftext|>" inside a text are
encoded as ordinary characters, and only the template (and `response_ids`) puts the token itself. Without this,
anyone whose text reaches a training set or the chat could end the assistant's turn and start a forged one.

A conversation is tokenised turn by turn, never as one string: the tokens of a prompt are then the same whether
an answer follows or not, so what is trained on is exactly what is sampled.
"""

from __future__ import annotations

import codecs
import datetime
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import ValidationError
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from wukong.errors import DataError, UsageError
from wukong.files import numbered_lines, read_json, write_json
from wukong.records import Message, PromptLike, as_messages

EOS = "<|endoftext|>"
TEMPLATES = Path(__file__).parent / "templates"
DEFAULT_TEMPLATE = "alpaca"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "encoder.json",
    "vocab.bpe",
)


class Tokenizer:
    """GPT-2's byte-level BPE with a chat template; made by `train` or `load`.

    Args:
        vocab: token -> id, in GPT-2's printable spelling of bytes; the ids are 0..len-1.
        merges: pairs of tokens, the first learnt first.
        added: further tokens (id, text, special) as `tokenizer.json` lists them; `<|endoftext|>` needs no mention.
        template: "alpaca", "plain", the path of a Jinja file, or Jinja source.

    Raises:
        UsageError: a vocabulary that is not byte-level BPE with `<|endoftext|>`, or an unusable template.
    """

    def __init__(
        self,
        vocab: dict[str, int],
        merges: Sequence[tuple[str, str]],
        *,
        added: Sequence[dict[str, Any]] = (),
        template: str | Path = DEFAULT_TEMPLATE,
    ) -> None:
        missing = [symbol for symbol in pre_tokenizers.ByteLevel.alphabet() if symbol not in vocab]
        if missing:
            raise UsageError(f"not a byte-level BPE vocabulary: {len(missing)} of the 256 bytes have no token")
        self._vocab, self._merges, self._added = vocab, list(merges), list(added)
        try:
            self._backend = Backend(models.BPE(vocab=vocab, merges=self._merges))
        except Exception as error:  # the Rust side raises bare exceptions, e.g. for a merge of unknown tokens
            raise UsageError(f"the vocabulary and the merges do not fit each other: {error}") from None
        self._backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._backend.decoder = decoders.ByteLevel()
        self._specials: dict[str, int] = {}
        for token in sorted(added, key=lambda token: token["id"]):
            self._add(token["content"], token.get("special", True), token["id"])
        if EOS not in self._specials:
            if EOS not in vocab:
                raise UsageError(f"the vocabulary has no {EOS} token, which ends GPT-2's documents and answers")
            self._add(EOS, True, vocab[EOS])
        self.eos_id: int = self._specials[EOS]
        self.vocab_size: int = self._backend.get_vocab_size()
        if sorted(self._backend.get_vocab().values()) != list(range(self.vocab_size)):
            raise UsageError(f"the vocabulary's ids are not 0 to {self.vocab_size - 1}, each once")
        self._backend.encode_special_tokens = True  # special tokens written in a text are ordinary characters
        self._chat = _ChatTemplate(template)

    def _add(self, text: str, special: bool, expected_id: int) -> None:
        self._backend.add_tokens([AddedToken(text, special=special, normalized=False)])
        if self._backend.token_to_id(text) != expected_id:
            raise UsageError(f"the added token {text!r} cannot have the id {expected_id}")
        if special:
            self._specials[text] = expected_id

    def __reduce__(self):
        # The compiled template cannot be pickled, and the backend's copy would forget `encode_special_tokens`.
        return _rebuild, (self._vocab, self._merges, self._added, self.template)

    # ------------------------------------------------------------------------------------------ made and stored

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, template: str | Path = DEFAULT_TEMPLATE) -> Tokenizer:
        """Learns the merges from texts (Sennrich et al. 2016, on bytes as GPT-2): the 256 bytes, then the most
        frequent pairs that occur at least twice, and `<|endoftext|>` as the last id. The order of the texts
        does not matter.

        Raises:
            UsageError: vocab_size is below 257, or above what the texts have pairs for.
            DataError: a text holds a lone surrogate.
        """
        if vocab_size < 257:
            raise UsageError(f"vocab_size {vocab_size} is too small: 256 bytes and {EOS} need 257")
        backend = Backend(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - 1,
            min_frequency=2,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(_checked(texts), trainer)
        model = json.loads(backend.to_str())["model"]
        vocab, merges = model["vocab"], [_pair(merge) for merge in model["merges"]]
        if len(vocab) < vocab_size - 1:
            raise UsageError(
                f"vocab_size {vocab_size} is too large, these texts repeat too little: lower it to {len(vocab) + 1}"
            )
        return cls({**vocab, EOS: len(vocab)}, merges, template=template)

    @classmethod
    def load(cls, source: str | Path, *, template: str | Path | None = None) -> Tokenizer:
        """Reads a tokenizer from a directory or a Hugging Face hub id.

        Args:
            source: holds tokenizer.json, or vocab.json + merges.txt, or OpenAI's encoder.json + vocab.bpe.
            template: instead of the one stored beside the tokenizer ("alpaca" where none is stored).

        Raises:
            UsageError: nothing there, or not GPT-2's kind of tokenizer.
        """
        directory = local_directory(source, TOKENIZER_FILES)
        if template is None:
            template = _stored_template(directory)
        if (file := directory / "tokenizer.json").is_file():
            vocab, merges, added = _read_tokenizer_json(file)
            return cls._from_file(file, vocab, merges, added, template)
        for vocab_name, merges_name in (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")):
            if (file := directory / vocab_name).is_file():
                return cls._from_file(file, read_json(file), _read_merges(directory / merges_name), (), template)
        raise UsageError(f"{directory}: no tokenizer here (tokenizer.json, vocab.json or encoder.json)")

    @classmethod
    def _from_file(cls, file: Path, vocab: Any, merges: Any, added: Any, template: str | Path) -> Tokenizer:
        if not isinstance(vocab, dict) or not all(type(index) is int for index in vocab.values()):
            raise UsageError(f"{file}: not a vocabulary (an object of token: id)")
        try:
            return cls(vocab, merges, added=added, template=template)
        except UsageError as error:
            raise UsageError(f"{file.parent}: {error}") from None

    def save(self, directory: str | Path, *, model_max_length: int | None = None) -> None:
        """Writes the files from which `load` and `transformers.AutoTokenizer` make the same tokenizer."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        names = {f"{role}_token": EOS for role in ("bos", "eos", "unk", "pad")}
        config = {
            "tokenizer_class": "GPT2Tokenizer",
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "errors": "replace",
            **names,
        }
        if model_max_length is not None:
            config["model_max_length"] = model_max_length
        write_json(directory / "tokenizer_config.json", config)
        write_json(directory / "special_tokens_map.json", names)
        write_json(directory / "tokenizer.json", json.loads(self._backend.to_str()))
        write_json(directory / "vocab.json", self._vocab)
        merges = "".join(f"{left} {right}\n" for left, right in self._merges)
        (directory / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8", newline="\n")
        (directory / "chat_template.jinja").write_text(self._chat.source, encoding="utf-8", newline="\n")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of vocabulary, merges, special tokens and template: equal means equal tokens for any input."""
        parts = [sorted(self._backend.get_vocab().items()), self._merges, self._specials, self._chat.source]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    # ------------------------------------------------------------------------------------------ text and tokens

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, no special token among them. Raises DataError for a lone surrogate."""
        return self._backend.encode(_check(text)).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """As `encode`, for many texts on all cores."""
        return [encoding.ids for encoding in self._backend.encode_batch_fast(list(_checked(texts)))]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of token ids. Bytes that are not UTF-8 and ids that have no token show as U+FFFD."""
        return b"".join(self.token_bytes(index, skip_special) for index in ids).decode("utf-8", "replace")

    def token_bytes(self, index: int, skip_special: bool = True) -> bytes:
        """The bytes one token stands for; none for a special token that is skipped."""
        if skip_special and index in self._special_ids:
            return b""
        return self._bytes.get(int(index), b"\xef\xbf\xbd")

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        return frozenset(self._specials.values())

    @cached_property
    def _bytes(self) -> dict[int, bytes]:
        added = {index: token.content for index, token in self._backend.get_added_tokens_decoder().items()}
        of_symbol = _byte_of_symbol()
        table = {
            index: bytes(of_symbol[c] for c in token) for token, index in self._vocab.items() if index not in added
        }
        return table | {index: text.encode() for index, text in added.items()}

    # ------------------------------------------------------------------------------------------ messages and tokens

    @property
    def template(self) -> str:
        """The chat template's Jinja source."""
        return self._chat.source

    def render(self, messages: PromptLike, *, add_generation_prompt: bool = False) -> str:
        """The conversation as text, as `transformers`' `apply_chat_template(tokenize=False)` gives it."""
        return self._chat.render(_dicts(_checked_messages(messages)), add_generation_prompt)

    def prompt_ids(self, messages: PromptLike, max_tokens: int | None = None) -> list[int]:
        """Tokens up to where the assistant's answer begins.

        Args:
            messages: the last one is not the assistant's.
            max_tokens: of a longer conversation the oldest turns are left out, whole turns from a user's message
                to the answer; a leading system message stays.

        Raises:
            DataError: no prompt at all, or one whose last turn alone is longer than max_tokens.
        """
        turns = _checked_messages(messages)
        if not turns or turns[-1].role == "assistant":
            raise DataError("a prompt must end with a user's (or system) message, to which the answer is sought")
        ids = [index for index, _ in self._tokens(turns, waiting=True)]
        if not ids:
            raise DataError("the prompt is empty")
        while max_tokens is not None and len(ids) > max_tokens:
            start = int(turns[0].role == "system")
            later_turns = [i for i in range(start + 1, len(turns)) if turns[i].role == "user"]
            if not later_turns:
                raise DataError(f"the prompt has {len(ids)} tokens, more than {max_tokens}")
            turns = turns[:start] + turns[later_turns[0] :]
            ids = [index for index, _ in self._tokens(turns, waiting=True)]
        return ids

    def response_ids(self, text: str, finished: bool = True) -> list[int]:
        """Tokens of an answer; `finished` appends `<|endoftext|>`, an answer cut off by its length has none."""
        return self.encode(text) + [self.eos_id] * finished

    def conversation_ids(self, messages: PromptLike) -> tuple[list[int], list[bool]]:
        """Tokens of a whole conversation, and True for each token the assistant says, `<|endoftext|>` included.

        `prompt_ids(messages[:-1]) + response_ids(messages[-1].content)` gives the same tokens.
        """
        pairs = list(self._tokens(_checked_messages(messages), waiting=False))
        return [index for index, _ in pairs], [is_response for _, is_response in pairs]

    def _tokens(self, messages: list[Message], *, waiting: bool) -> Iterator[tuple[int, bool]]:
        """(token id, whether the assistant says it); each turn of the assistant is tokenised by itself.

        Special tokens written in the contents are veiled by private-use characters while the template runs, so
        that those in its output are the template's own; then the veil is lifted.
        """
        contents = "".join(message.content for message in messages)
        free = (chr(point) for point in range(0xF0000, 0xFFFFE) if chr(point) not in contents)
        veils = {text: next(free) for text in self._specials if text in contents}
        turns = _dicts(messages)
        for turn in turns:
            for text, veil in veils.items():
                turn["content"] = turn["content"].replace(text, veil)
        for text, is_response in self._chat.turns(turns, waiting):
            for part in self._special_pattern.split(text):
                if part in self._specials:
                    yield self._specials[part], is_response
                    continue
                for special, veil in veils.items():
                    part = part.replace(veil, special)
                yield from ((index, is_response) for index in self.encode(part))

    @cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self._specials, key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")


class StreamDecoder:
    """Text of tokens as they come: a character appears when its last byte has.

    The pieces of `push` and the last one of `finish` make up `Tokenizer.decode` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True) -> None:
        self._tokenizer, self._skip_special = tokenizer, skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, index: int) -> str:
        return self._utf8.decode(self._tokenizer.token_bytes(index, self._skip_special))

    def finish(self) -> str:
        """What is left: U+FFFD where the last character stayed incomplete, else nothing."""
        return self._utf8.decode(b"", final=True)


class _ChatTemplate:
    """A Jinja template, run as `transformers` runs it: sandboxed, as it may come from the hub, and trimmed alike."""

    def __init__(self, template: str | Path) -> None:
        name, self.source = _template_source(template)
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        self._name = f"chat template {name}"
        try:
            self._compiled = environment.from_string(self.source)
        except jinja2.TemplateSyntaxError as error:
            raise UsageError(f"{self._name}: line {error.lineno}: {error.message}") from None
        probe = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
        said = [text for text, is_response in self.turns(probe, waiting=False) if is_response]
        if said != ["A" + EOS]:
            raise UsageError(
                f"{self._name}: after its generation prompt an assistant's turn must be the content and {EOS} "
                f"(eos_token), not {said[0]!r}; choose another with template='alpaca'"
            )

    def render(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        try:
            return self._compiled.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **{f"{role}_token": EOS for role in ("bos", "eos", "unk", "pad")},
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError) as error:
            raise UsageError(f"{self._name}: {error}") from None

    def turns(self, messages: list[dict[str, str]], waiting: bool) -> Iterator[tuple[str, bool]]:
        """The rendered conversation cut before and after each of the assistant's turns: (text, is_response)."""
        done = ""
        for i, message in enumerate(messages):
            if message["role"] == "assistant":
                prompt = self.render(messages[:i], True)
                yield self._beyond(done, prompt), False
                done = self.render(messages[: i + 1], False)
                yield self._beyond(prompt, done), True
        yield self._beyond(done, self.render(messages, waiting)), False

    def _beyond(self, start: str, text: str) -> str:
        if not text.startswith(start):
            raise UsageError(f"{self._name}: a later turn changes the text of an earlier one; use template='alpaca'")
        return text[len(start) :]


def local_directory(source: str | Path, files: Sequence[str]) -> Path:
    """The directory itself, or where those `files` (glob patterns) of a Hugging Face hub id were downloaded to.

    Raises:
        UsageError: no such directory, no such id, or no connection to the hub.
    """
    path, name = Path(source), str(source)
    if path.is_dir():
        return path
    if path.exists():
        raise UsageError(f"{name}: is a file, a directory was expected")
    local = isinstance(source, Path) or (path.parent != Path() and path.parent.is_dir())  # a typing error, not an id
    if local or not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        raise UsageError(f"{name}: no such directory")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(files)))
    except (RepositoryNotFoundError, HFValidationError):
        raise UsageError(f"{name}: neither a directory nor a Hugging Face model id") from None
    except (OSError, HTTPError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UsageError(f"{name}: no such directory, and not to be had from the Hugging Face hub: {reason}") from None


def _check(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"the text holds half a character: lone surrogate U+{ord(text[error.start]):04X} at index {error.start}",
            hint="it was cut or decoded wrongly; mend the source or drop the record",
        ) from None
    return text


def _checked(texts: Iterable[str]) -> Iterator[str]:
    for number, text in enumerate(texts, start=1):
        try:
            yield _check(text)
        except DataError as error:
            raise DataError(f"text {number}: {error.problem}", hint=error.hint) from None


def _checked_messages(prompt: PromptLike) -> list[Message]:
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    for number, message in enumerate(prompt, start=1):
        content = message.content if isinstance(message, Message) else message.get("content")
        if isinstance(content, str):
            try:
                _check(content)
            except DataError as error:
                raise DataError(f"message {number}: {error.problem}", hint=error.hint) from None
    try:
        return as_messages(prompt)
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(f"message: {first['msg']}", field=".".join(map(str, first["loc"]))) from None


def _rebuild(vocab: dict[str, int], merges: list, added: list, template: str) -> Tokenizer:
    return Tokenizer(vocab, merges, added=added, template=template)


def _dicts(messages: Iterable[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def _byte_of_symbol() -> dict[str, int]:
    """GPT-2's printable spelling of bytes: visible Latin-1 stands for itself, the rest from U+0100 on, in order."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(0x100 + i): byte for i, byte in enumerate(hidden)}


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _read_merges(file: Path) -> list[tuple[str, str]]:
    merges = []
    for number, line in numbered_lines(file):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        try:
            merges.append(_pair(line))
        except ValueError:
            raise DataError("a merge is two tokens with a space between", file=file, line=number) from None
    return merges


def _read_tokenizer_json(file: Path) -> tuple[Any, list[tuple[str, str]], list[dict]]:
    """Vocabulary, merges and added tokens. Raises UsageError where the file would not tokenise as GPT-2 does."""
    content = read_json(file)
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE" or "merges" not in model:
        raise UsageError(f"{file}: not a BPE tokenizer, GPT-2's is needed")
    splitter = content.get("pre_tokenizer") or {}
    if splitter.get("type") != "ByteLevel" or not splitter.get("use_regex", True) or content.get("normalizer"):
        raise UsageError(f"{file}: text is not split as GPT-2 does (ByteLevel, no normalizer)")
    if splitter.get("add_prefix_space"):
        raise UsageError(f"{file}: add_prefix_space is set, GPT-2 was trained without it")
    try:
        merges = [_pair(merge) for merge in model["merges"]]
        added = [
            {"id": int(t["id"]), "content": str(t["content"]), "special": t["special"]} for t in content["added_tokens"]
        ]
    except (ValueError, TypeError, KeyError):
        raise UsageError(f"{file}: its merges or added_tokens are damaged") from None
    return model.get("vocab"), merges, added


def _stored_template(directory: Path) -> str | Path:
    if (file := directory / "chat_template.jinja").is_file():
        return file
    if (file := directory / "tokenizer_config.json").is_file():
        stored = read_json(file).get("chat_template")
        if isinstance(stored, str):
            return stored
    return DEFAULT_TEMPLATE


def _template_source(template: str | Path) -> tuple[str, str]:
    """(what to call it in an error, Jinja source)."""
    name = str(template)
    if isinstance(template, str) and ("{{" in template or "{%" in template):
        return "given as text", template
    built_in = TEMPLATES / f"{name}.jinja"
    file = built_in if re.fullmatch(r"\w+", name) and built_in.is_file() else Path(template)
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in TEMPLATES.glob("*.jinja")))
        raise UsageError(f"chat template {name}: neither a file nor one of {known}")
    return name, file.read_text(encoding="utf-8")


def _tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
