"""A model's tokenizer, trained here (byte-level BPE as GPT-2's) or loaded, and the chat template that turns messages
into tokens.

Text never becomes a special token: the characters "<|endoftext|>" in a text are encoded as ordinary characters, and
only the template (and `response_ids`) inserts the token. Otherwise anyone whose text reaches a training set or the chat
could end the assistant's turn and forge another.

A conversation is tokenised turn by turn, never as one string: the tokens of a prompt are the same whether or not an
answer follows, so training and sampling see the same tokens.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import takewhile
from operator import itemgetter
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, trainers

from wukong.chat_template import DEFAULT_TEMPLATE, TEMPLATES, ChatTemplate
from wukong.downloads import local_directory
from wukong.errors import DataError, UsageError
from wukong.files import write_json
from wukong.records import Message, PromptLike, as_messages
from wukong.tokenizer_checks import pair_of
from wukong.tokenizer_files import TOKENIZER_FILES, read_tokenizer
from wukong.tokenizer_kinds import EOS, gpt2_definition, is_gpt2s, is_words
from wukong.tokenizer_spelling import ByteSpelling, Spelling, WordSpelling, missing_bytes

__all__ = ["DEFAULT_TEMPLATE", "EOS", "TEMPLATES", "TOKENIZER_FILES", "StreamDecoder", "Tokenizer", "local_directory"]

OWN_ROLES = {f"{role}_token": EOS for role in ("bos", "eos", "unk", "pad")}


class Tokenizer:
    """Byte-level BPE or BERT's WordPiece, with a chat template; made by `train` or `load`.

    Args:
        definition: the validated content of a tokenizer.json (`tokenizer_files.read_tokenizer`).
        roles: role -> text of the special token, e.g. {"eos_token": "<|endoftext|>"}.
        end_ids: the tokens that end an answer, if the model specifies any; ids without a token are never sampled.
        template: "alpaca", "plain", the path of a Jinja file, or Jinja source.

    Attributes:
        eos_id: the token that ends a document (`eos_token`).
        eos_ids: the tokens that end an answer; the first is the template's.
        vocab_size: the number of tokens; their ids are 0..vocab_size-1.
        roles: as given.

    Raises:
        UsageError: the vocabulary is of another kind or has no end token, or the template is unusable.
    """

    def __init__(
        self,
        definition: Mapping[str, Any],
        *,
        roles: Mapping[str, str] = OWN_ROLES,
        end_ids: Sequence[int] = (),
        template: str | Path = DEFAULT_TEMPLATE,
    ) -> None:
        self._vocab: dict[str, int] = definition["model"]["vocab"]
        self._has_words = is_words(definition)
        if not self._has_words and (missing := missing_bytes(self._vocab)):
            raise UsageError(f"not a byte-level BPE vocabulary: {len(missing)} of the 256 bytes have no token")
        self._backend = _backend_of(definition)
        self._merges = [pair_of(merge) for merge in definition["model"].get("merges", [])]
        self.vocab_size: int = self._backend.get_vocab_size()
        if sorted(self._backend.get_vocab().values()) != list(range(self.vocab_size)):
            raise UsageError(f"the vocabulary's ids are not 0 to {self.vocab_size - 1}, each once")
        added = self._backend.get_added_tokens_decoder()
        for token in definition["added_tokens"]:
            if token["id"] not in added or added[token["id"]].content != token["content"]:
                raise UsageError(f"the added token {token['content']!r} cannot have the id {token['id']}")
        end_ids = [index for index in end_ids if index < self.vocab_size]
        self.roles = dict(roles)
        if "eos_token" not in self.roles:
            ends = [text for index in end_ids if (text := self._backend.id_to_token(index))]
            if not (ends := ends or [EOS] * (EOS in self._vocab)):
                raise UsageError("no end token: set eos_token in tokenizer_config.json")
            self.roles["eos_token"] = ends[0]
        self._make_special(
            definition, [self.roles["eos_token"], *filter(None, map(self._backend.id_to_token, end_ids))]
        )
        self.eos_id: int = self._specials[self.roles["eos_token"]]
        begins = self._before_text == [self._specials.get(self.roles.get("bos_token", ""))]
        self._chat = ChatTemplate(template, self.roles, self._specials, begin_with_bos=begins)
        others = {self.eos_id, *end_ids} if not end_ids else set(end_ids)
        first = self._specials[self._chat.end]
        self.eos_ids: tuple[int, ...] = (first, *sorted(others - {first}))
        self._end_ids = tuple(end_ids)

    def _make_special(self, definition: Mapping[str, Any], ends: Sequence[str]) -> None:
        """Makes end tokens special, whatever the files say, so that they cannot be forged in a text."""
        tokens = self._backend.get_added_tokens_decoder()
        special = {token.content for token in tokens.values() if token.special}
        ordinary = [text for text in dict.fromkeys(ends) if text not in special]
        if ordinary:
            kept = [token for token in definition["added_tokens"] if token["content"] not in ordinary]
            new = [
                {"id": self._backend.token_to_id(text), "content": text, "special": True, "normalized": False}
                | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
                for text in ordinary
            ]
            added = sorted([*kept, *new], key=lambda token: token["id"])
            self._backend = _backend_of({**definition, "added_tokens": added})
            tokens = self._backend.get_added_tokens_decoder()
        self._specials = {token.content: index for index, token in sorted(tokens.items()) if token.special}
        self._backend.encode_special_tokens = True  # encode special tokens in texts as ordinary characters
        whole = self._backend.encode("a")
        self._before_text = [
            index for index, _ in takewhile(itemgetter(1), zip(whole.ids, whole.special_tokens_mask, strict=False))
        ]
        self._continuing = self._backend
        splitter = definition["pre_tokenizer"]
        parts = splitter.get("pretokenizers", [splitter])
        if parts[-1].get("add_prefix_space"):
            plain = copy.deepcopy(splitter)
            plain.get("pretokenizers", [plain])[-1]["add_prefix_space"] = False
            content = json.loads(self._backend.to_str())
            self._continuing = _backend_of({**content, "pre_tokenizer": plain})
            self._continuing.encode_special_tokens = True

    def __reduce__(self) -> tuple[Any, ...]:
        # The template's process cannot be pickled, and a pickled backend loses `encode_special_tokens`.
        definition = json.loads(self._backend.to_str())
        return _rebuild, (definition, self.roles, self._end_ids, self.template)

    def role_id(self, role: str) -> int:
        """The token with a role such as "pad_token"; `eos_id` if there is none."""
        return self._specials[self.roles.get(role, self.roles["eos_token"])]

    # ------------------------------------------------------------------------------------------ creating and saving

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, template: str | Path = DEFAULT_TEMPLATE) -> Tokenizer:
        """Learns the merges from texts (Sennrich et al. 2016, on bytes as GPT-2): the 256 bytes, then the most frequent
        pairs that occur at least twice, and `<|endoftext|>` as the last id. Independent of the order of the texts.

        Raises:
            UsageError: vocab_size is below 257, or more than the texts' pairs allow.
            DataError: a text contains a lone surrogate.
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
        vocab, merges = model["vocab"], [pair_of(merge) for merge in model["merges"]]
        if len(vocab) < vocab_size - 1:
            raise UsageError(f"vocab_size {vocab_size} is too large for these texts: lower it to {len(vocab) + 1}")
        end = {"id": len(vocab), "content": EOS, "special": True, "normalized": False}
        added = [end | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)]
        return cls(gpt2_definition({**vocab, EOS: len(vocab)}, merges, added), template=template)

    @classmethod
    def load(cls, source: str | Path, *, template: str | Path | None = None) -> Tokenizer:
        """Reads a tokenizer from a directory or a Hugging Face hub id.

        Args:
            source: contains tokenizer.json, or vocab.json + merges.txt, or OpenAI's encoder.json + vocab.bpe, or BERT's
                vocab.txt; also read are tokenizer_config.json, special_tokens_map.json, added_tokens.json, chat
                templates, and the end tokens of generation_config.json or config.json.
            template: replaces the one stored with the tokenizer ("alpaca" if none is stored).

        Raises:
            UsageError: no tokenizer, or one of another kind.
        """
        directory = local_directory(source, TOKENIZER_FILES)
        files = read_tokenizer(directory)
        chosen = files.template if template is None else template
        try:
            return cls(files.definition, roles=files.roles, end_ids=files.end_ids, template=chosen)
        except UsageError as error:
            where = "" if str(error).startswith("chat template /") else f"{directory}: "
            raise UsageError(f"{where}{error}") from None

    def save(self, directory: str | Path, *, model_max_length: int | None = None) -> None:
        """Writes files that `load` and `transformers.AutoTokenizer` read as the same tokenizer."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        definition = json.loads(self._backend.to_str())
        config: dict[str, Any] = {**self._class_options(definition), **self.roles}
        if model_max_length is not None:
            config["model_max_length"] = model_max_length
        write_json(directory / "tokenizer_config.json", config)
        write_json(directory / "special_tokens_map.json", self.roles)
        write_json(directory / "tokenizer.json", definition)
        if self._has_words:
            lines = "".join(f"{token}\n" for token in sorted(self._vocab, key=self._vocab.__getitem__))
            (directory / "vocab.txt").write_text(lines, encoding="utf-8", newline="\n")
        else:
            write_json(directory / "vocab.json", self._vocab)
            merges = "".join(f"{left} {right}\n" for left, right in self._merges)
            (directory / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8", newline="\n")
        (directory / "chat_template.jinja").write_text(self._chat.source, encoding="utf-8", newline="\n")

    def _class_options(self, definition: Mapping[str, Any]) -> dict[str, Any]:
        """The class of `transformers` that makes the same tokens, and its options."""
        if self._has_words:
            normal = definition["normalizer"]
            return {
                "tokenizer_class": "BertTokenizer",
                "do_lower_case": normal["lowercase"],
                "strip_accents": normal["strip_accents"],
                "tokenize_chinese_chars": normal["handle_chinese_chars"],
                "clean_up_tokenization_spaces": False,
            }
        return {
            "tokenizer_class": "GPT2Tokenizer" if is_gpt2s(definition) else "PreTrainedTokenizerFast",
            "add_prefix_space": self._continuing is not self._backend,
            "clean_up_tokenization_spaces": False,
            "errors": "replace",
        }

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of vocabulary, merges, special tokens and template: equal means equal tokens for any input."""
        parts: list[Any] = [sorted(self._backend.get_vocab().items()), self._merges, self._specials, self._chat.source]
        definition = json.loads(self._backend.to_str())
        if not is_gpt2s(definition) or self._continuing is not self._backend:
            parts.append([definition["normalizer"], definition["pre_tokenizer"]])
        if {self.roles["eos_token"], self._chat.end} != {EOS} or len(self.eos_ids) > 1:
            parts.append([self.roles["eos_token"], self.eos_ids])
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    # ------------------------------------------------------------------------------------------ text and tokens

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens. Raises DataError for a lone surrogate."""
        return self._backend.encode(_check(text), add_special_tokens=False).ids

    def raw_ids(self, text: str) -> list[int]:
        """Token ids of a raw text to be continued, after the model's `bos_token` if it has one (GPT-2 has none)."""
        return self._before_text + self.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """As `encode`, for many texts on all cores."""
        return [e.ids for e in self._backend.encode_batch_fast(list(_checked(texts)), add_special_tokens=False)]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of token ids. Invalid UTF-8 and ids without a token become U+FFFD."""
        skipped = self.special_ids if skip_special else frozenset()
        return self.spelling.text(index for index in ids if index not in skipped)

    def token_bytes(self, index: int, skip_special: bool = True) -> bytes:
        """The bytes of one token; empty for a skipped special token."""
        if skip_special and index in self.special_ids:
            return b""
        return self.spelling.bytes_of(index)

    def token_texts(self, ids: Iterable[int]) -> list[str]:
        r"""Each token alone, to be shown: special tokens by name, parts of a character as bytes (\xe4\xbd)."""
        return [self.token_bytes(index, skip_special=False).decode("utf-8", "backslashreplace") for index in ids]

    @cached_property
    def spelling(self) -> Spelling:
        """How its tokens become text."""
        added = {index: token.content for index, token in self._backend.get_added_tokens_decoder().items()}
        return WordSpelling(self._vocab, added) if self._has_words else ByteSpelling(self._vocab, added)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The tokens that no text becomes, and that a decoded text leaves out."""
        return frozenset(self._specials.values())

    # ------------------------------------------------------------------------------------------ messages and tokens

    @property
    def template(self) -> str:
        """The chat template's Jinja source."""
        return self._chat.source

    def render(self, messages: PromptLike, *, add_generation_prompt: bool = False) -> str:
        """The conversation as text, as by `transformers`' `apply_chat_template(tokenize=False)`."""
        return self._chat.render(_dicts(_checked_messages(messages)), add_generation_prompt)

    def prompt_ids(self, messages: PromptLike, max_tokens: int | None = None) -> list[int]:
        """Tokens up to where the assistant's answer begins.

        Args:
            messages: the last one is not the assistant's.
            max_tokens: longer conversations lose their oldest exchanges (user message and answer); a leading system
                message stays.

        Raises:
            DataError: an empty prompt, or one whose last turn alone exceeds max_tokens.
        """
        turns = _checked_messages(messages)
        if not turns or turns[-1].role == "assistant":
            raise DataError("a prompt must end with a user (or system) message")
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
        """Tokens of an answer; `finished` appends the token that ends the assistant's turn (`<|endoftext|>`, or the
        template's), which a truncated answer lacks."""
        return self._answer_ids(text) + [self.eos_ids[0]] * finished

    def _answer_ids(self, text: str) -> list[int]:
        """Token ids of an answer after its prompt: it gets a space (`add_prefix_space`) only if the prompt ends with a
        special token."""
        return self._continued(text) if self._chat.answer_follows_text else self.encode(text)

    def _continued(self, text: str) -> list[int]:
        """Token ids of a text that follows another one directly."""
        return self._continuing.encode(_check(text), add_special_tokens=False).ids

    def conversation_ids(self, messages: PromptLike) -> tuple[list[int], list[bool]]:
        """Tokens of a conversation, and True for each token of the assistant, including end tokens; False for an
        earlier answer that the template shows in another way than it was written, as Qwen3's does.

        `prompt_ids(messages[:-1]) + response_ids(messages[-1].content)` gives the same tokens.
        """
        pairs = list(self._tokens(_checked_messages(messages), waiting=False))
        return [index for index, _ in pairs], [is_response for _, is_response in pairs]

    def _tokens(self, messages: list[Message], *, waiting: bool) -> Iterator[tuple[int, bool]]:
        """(token id, whether it is the assistant's); each of the assistant's turns is tokenised separately.

        Special tokens in the contents are masked by private-use characters while the template runs, so that those in
        its output are the template's; then the mask is undone.
        """
        contents = "".join(message.content for message in messages)
        free = (chr(point) for point in range(0xF0000, 0xFFFFE) if chr(point) not in contents)
        veils = {text: next(free) for text in self._specials if text in contents}
        turns = _dicts(messages)
        for turn in turns:
            for text, veil in veils.items():
                turn["content"] = turn["content"].replace(text, veil)
        follows_text = False
        for text, is_response in self._chat.turns(turns, waiting):
            for part, special_id in self._split(text):
                if special_id is not None:
                    yield special_id, is_response
                    follows_text = False
                    continue
                for special, veil in veils.items():
                    part = part.replace(veil, special)
                if is_response:
                    ids = self._answer_ids(part)
                else:
                    ids = self._continued(part) if follows_text else self.encode(part)
                yield from ((index, is_response) for index in ids)
                follows_text = True

    def _split(self, text: str) -> Iterator[tuple[str, int | None]]:
        """The template's text cut at its special tokens: (text, None) or (token, its id)."""
        done = 0
        for match in self._special_pattern.finditer(text):
            if match.start() > done:
                yield text[done : match.start()], None
            yield match[0], self._specials[match[0].strip() if match[0] not in self._specials else match[0]]
            done = match.end()
        if done < len(text):
            yield text[done:], None

    @cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        """Matches the longest special token at a position; some include adjacent white space (`lstrip`, `rstrip`)."""
        tokens = [token for token in self._backend.get_added_tokens_decoder().values() if token.special]
        longest_first = sorted(tokens, key=lambda token: len(token.content), reverse=True)
        return re.compile("|".join(
            ("\\s*" if token.lstrip else "") + re.escape(token.content) + ("\\s*" if token.rstrip else "")
            for token in longest_first
        ))  # fmt: skip


class StreamDecoder:
    """Decodes tokens incrementally: a character appears once its last byte has arrived.

    The results of `push` and `finish` add up to `Tokenizer.decode` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True) -> None:
        self._writer = tokenizer.spelling.writer()
        self._skipped = tokenizer.special_ids if skip_special else frozenset()

    def push(self, index: int) -> str:
        return "" if index in self._skipped else self._writer.push(index)

    def finish(self) -> str:
        """The rest: U+FFFD if the last character is incomplete, else ""."""
        return self._writer.finish()


def _check(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"the text contains half a character: lone surrogate U+{ord(text[error.start]):04X} at index {error.start}",
            hint="it was cut or decoded wrongly; fix the source or drop the record",
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


def _backend_of(definition: Mapping[str, Any]) -> Backend:
    """Raises UsageError if the `tokenizers` library rejects the definition."""
    try:
        return Backend.from_str(json.dumps(definition))
    except BaseException as error:  # the Rust side raises bare exceptions, and panics are not Exceptions
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = (str(error).splitlines() or ["damaged"])[0]
        raise UsageError(f"the vocabulary and the merges do not match: {reason[:200]}") from None


def _rebuild(definition: dict[str, Any], roles: dict[str, str], end_ids: Sequence[int], template: str) -> Tokenizer:
    return Tokenizer(definition, roles=roles, end_ids=end_ids, template=template)


def _dicts(messages: Iterable[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]
