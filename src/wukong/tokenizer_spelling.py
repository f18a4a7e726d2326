"""From tokens back to text: byte-level BPE joins bytes, WordPiece joins words.

A `Spelling` knows the text of each token; its `writer` takes tokens one by one as they are sampled.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Protocol

from wukong.tokenizer_checks import PIECE

UNKNOWN = b"\xef\xbf\xbd"
"""U+FFFD, for an id without a token."""
_ENDS = frozenset(".,!?;:%)]}'’”")
_BEGINS = frozenset("([{'‘“#$@")
_PAIRED = frozenset("…—")
"""Chinese punctuation that is written twice."""


class Writer(Protocol):
    """Text while it grows."""

    def push(self, index: int) -> str:
        """What a further token adds; a character appears once its last byte has arrived."""

    def finish(self) -> str:
        """The rest: U+FFFD if the last character is incomplete, else ""."""


class Spelling(Protocol):
    def bytes_of(self, index: int) -> bytes:
        """The bytes of one token alone."""

    def text(self, ids: Iterable[int]) -> str:
        """The text of tokens."""

    def writer(self) -> Writer:
        """A writer whose pieces add up to `text`."""


# ---------------------------------------------------------------------------------------------------------- bytes


class ByteSpelling:
    """GPT-2's byte symbols (Radford et al. 2019).

    Args:
        vocab: token -> id.
        added: id -> text of the added tokens, which are themselves.
    """

    def __init__(self, vocab: Mapping[str, int], added: Mapping[int, str]) -> None:
        of_symbol = byte_of_symbol()
        table = {
            # As in the ByteLevel decoder: a token with a character that is not a byte symbol is its own text.
            index: bytes(of_symbol[c] for c in token) if of_symbol.keys() >= set(token) else token.encode()
            for token, index in vocab.items()
            if index not in added
        }
        self._bytes = table | {index: text.encode() for index, text in added.items()}

    def bytes_of(self, index: int) -> bytes:
        return self._bytes.get(int(index), UNKNOWN)

    def text(self, ids: Iterable[int]) -> str:
        return b"".join(map(self.bytes_of, ids)).decode("utf-8", "replace")

    def writer(self) -> Writer:
        return _ByteWriter(self)


class _ByteWriter:
    def __init__(self, spelling: ByteSpelling) -> None:
        self._spelling = spelling
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, index: int) -> str:
        return self._utf8.decode(self._spelling.bytes_of(index))

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


def byte_of_symbol() -> dict[str, int]:
    """GPT-2's printable byte symbols: visible Latin-1 characters are themselves, the rest start at U+0100, in order."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(0x100 + i): byte for i, byte in enumerate(hidden)}


def missing_bytes(vocab: Mapping[str, int]) -> list[int]:
    """The bytes of ordinary text that have no token.

    SmolLM2's vocabulary lacks some control characters and the first byte of U+40000 to U+BFFFF, where no character is
    assigned; its own tokenizer leaves them out of a text.
    """
    needed = {*b"\t\n\r", *range(0x20, 0x7F), *range(0x80, 0xC0), *range(0xC2, 0xF1), 0xF3, 0xF4}
    return sorted(byte for symbol, byte in byte_of_symbol().items() if byte in needed and symbol not in vocab)


# ---------------------------------------------------------------------------------------------------------- words


class WordSpelling:
    """BERT's words and pieces of words. The vocabulary has no spaces, so they are restored by rule: between words, but
    not beside Chinese and Japanese characters, before a full stop or inside "3.5" and "don't".

    Arguments as for `ByteSpelling`.
    """

    def __init__(self, vocab: Mapping[str, int], added: Mapping[int, str]) -> None:
        self._texts = {index: token for token, index in vocab.items()} | dict(added)
        self._whole = frozenset(added)

    def bytes_of(self, index: int) -> bytes:
        text = self._texts.get(int(index))
        return UNKNOWN if text is None else text.encode()

    def text(self, ids: Iterable[int]) -> str:
        writer = self.writer()
        return "".join(map(writer.push, ids))

    def writer(self) -> Writer:
        return _WordWriter(self)

    def after(self, written: str, index: int) -> str:
        """What a token adds to a text, of which the last two characters matter."""
        text = self._texts.get(int(index), UNKNOWN.decode())
        if index not in self._whole and text.startswith(PIECE) and len(text) > len(PIECE):
            return text.removeprefix(PIECE)
        return " " + text if _apart(written, text) else text


class _WordWriter:
    def __init__(self, spelling: WordSpelling) -> None:
        self._spelling, self._written = spelling, ""

    def push(self, index: int) -> str:
        added = self._spelling.after(self._written, index)
        self._written = (self._written + added)[-2:]
        return added

    def finish(self) -> str:
        return ""


def _apart(written: str, text: str) -> bool:
    """Whether there is a space between a text and a word."""
    if not written or not text:
        return False
    last, first = written[-1], text[0]
    if _is_spaceless(last) or _is_spaceless(first) or first in _ENDS or last in _BEGINS:
        return False
    if last == first and first in _PAIRED:
        return False
    return not (re.fullmatch(r"\d[.:]", written[-2:]) and first.isdigit())


def _is_spaceless(character: str) -> bool:
    """Whether a character belongs to a script without spaces between words."""
    wide = unicodedata.east_asian_width(character) in "WF"
    return wide and not unicodedata.name(character, "").startswith("HANGUL")
