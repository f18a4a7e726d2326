"""GPT-2's byte-level BPE written plainly after the paper (Sennrich et al. 2016; Radford et al. 2019, section 2.2).

An oracle that shares no code with the `tokenizers` library: pieces by GPT-2's regular expression, each piece's
UTF-8 bytes as single-byte tokens, then the adjacent pair that was learnt first is merged until none is left.
"""

import json
from itertools import pairwise
from pathlib import Path

import regex

PIECES = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


def printable_bytes() -> list[str]:
    """How GPT-2's files spell each byte: itself where it is visible in Latin-1, else the next from U+0100 on."""
    visible = (
        set(range(ord("!"), ord("~") + 1)) | set(range(ord("¡"), ord("¬") + 1)) | set(range(ord("®"), ord("ÿ") + 1))
    )
    spelling, following = [], 256
    for byte in range(256):
        if byte in visible:
            spelling.append(chr(byte))
        else:
            spelling.append(chr(following))
            following += 1
    return spelling


class ReferenceBPE:
    def __init__(self, directory: Path) -> None:
        self.ids = json.loads((directory / "encoder.json").read_text(encoding="utf-8"))
        lines = (directory / "vocab.bpe").read_text(encoding="utf-8").split("\n")[1:-1]
        self.rank = {tuple(line.split(" ")): number for number, line in enumerate(lines)}
        self.spelling = printable_bytes()

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for piece in PIECES.findall(text):
            symbols = [self.spelling[byte] for byte in piece.encode("utf-8")]
            while True:
                known = [pair for pair in pairwise(symbols) if pair in self.rank]
                if not known:
                    break
                symbols = self.merge(symbols, min(known, key=self.rank.__getitem__))
            ids += [self.ids[symbol] for symbol in symbols]
        return ids

    @staticmethod
    def merge(symbols: list[str], pair: tuple[str, str]) -> list[str]:
        merged: list[str] = []
        for symbol in symbols:
            # A symbol that has just been made of the pair is not its left half again, so "aaa" gives "aa", "a".
            if merged and (merged[-1], symbol) == pair:
                merged[-1] = merged[-1] + symbol
            else:
                merged.append(symbol)
        return merged
