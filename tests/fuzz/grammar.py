"""Records of every known format, valid and malformed, from a seeded generator.

A case is the bytes of one small file with its name. Mutations work on records (a field dropped, renamed, of another
type, ...), on the JSON text (a key twice, NaN, nesting) or on the bytes (truncated, another encoding).
"""

from __future__ import annotations

import copy
import functools
import gzip
import io
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow
import pyarrow.parquet

from wukong.data.comparisons import COMPARISONS
from wukong.data.instructions import INSTRUCTIONS
from wukong.data.prompts import PROMPTS
from wukong.data.text import TEXT

Record = dict[str, Any]
WORDS = [
    "boil", "the", "egg", "for", "ten", "minutes", "then", "add", "salt", "and", "serve", "while", "it", "is",
    "hot", "蛋", "café", "🥚", "{}", "[]", '\\', '"', "'",
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One malformed file: where it came from, and what is in it."""

    format: str
    mutation: str
    name: str
    content: bytes


@functools.cache
def formats() -> dict[str, Record]:
    """An example of each format, by a name that says which reader has it."""
    found: dict[str, Record] = {}
    for registry in (INSTRUCTIONS, COMPARISONS, PROMPTS, TEXT):
        for form in registry.formats:
            example = json.loads(json.dumps(form.example))
            if form.name != "preference" and example not in found.values():
                number = sum(name.partition("#")[0] == form.name for name in found)
                found[form.name if not number else f"{form.name}#{number + 1}"] = example
    flat = {"message_id": "a", "parent_id": None, "text": "Hi", "role": "prompter"}
    return found | {"oasst-flat": flat}


def sentence(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(1, 8)))


def varied(example: Any, rng: random.Random, key: str = "") -> Any:
    """The example with other words in it; names, roles and verdicts stay."""
    if isinstance(example, dict):
        return {name: varied(value, rng, name) for name, value in example.items()}
    if isinstance(example, list):
        return [varied(value, rng, key) for value in example]
    fixed = ("role", "from", "type", "selected", "winner", "message_id", "parent_id")
    verdict = key.endswith("responses") or (key == "value" and str(example).startswith("response"))
    if not isinstance(example, str) or key in fixed or verdict:
        return example
    if example.lstrip().startswith("Human:"):
        return f"\n\nHuman: Hi there\n\nAssistant: {sentence(rng)}"
    return f"Hi {sentence(rng)}"


def valid(format: str, rng: random.Random) -> list[Record]:
    """One to four valid records."""
    return [varied(formats()[format], rng) for _ in range(rng.randint(1, 4))]


# ------------------------------------------------------------------------------------------------------------ mutations

ODD: list[Any] = [
    None, True, False, 0, -1, 3, 1.5, float("nan"), float("inf"), -1e308, 10**30, "", " ", "nan", "\u0000", "x" * 300,
    [], {}, [[]], [{}], [None], ["Hi"], {"a": 1}, [{"role": "user", "content": "Hi"}],
    [{"role": "robot", "content": 1}],
    [{"role": "assistant", "content": None, "tool_calls": [{"id": "x"}]}], {"text": {"text": 1}},
]  # fmt: skip
EXTRA = [
    "kto_tag", "label", "vote", "weight", "tools", "images", "history", "system", "tie", "strength", "margin",
    "seconds", "annotator", "winner", "preference", "score_chosen", "score_rejected", "messages", "conversations",
    "completions", "annotations", "data", "instances", "prompt", "text", "chosen", "rejected", "output", "response",
    "answer", "question", "source", "id", "groups", "rank", "replies", "message_id", "parent_id", "fields",
    "responses",
]  # fmt: skip


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value below."""
    found: list[tuple[Any, Any]] = []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in list(items):
        found += [(value, key), *places(child)]
    return found


def _picked(records: list[Record], rng: random.Random, only: type | tuple[type, ...] = object) -> tuple[Any, Any]:
    spots = [spot for spot in places(records) if isinstance(spot[0][spot[1]], only)]
    return rng.choice(spots or places(records))


def drop_field(records: list[Record], rng: random.Random) -> None:
    container, key = rng.choice([spot for spot in places(records) if isinstance(spot[0], dict)])
    del container[key]


def rename_field(records: list[Record], rng: random.Random) -> None:
    container, key = rng.choice([spot for spot in places(records) if isinstance(spot[0], dict)])
    container[rng.choice([*EXTRA, key.upper(), key + " ", "\ud83d\ude00", "a\nb"])] = container.pop(key)


def wrong_type(records: list[Record], rng: random.Random) -> None:
    container, key = _picked(records, rng)
    container[key] = copy.deepcopy(rng.choice(ODD))


def null(records: list[Record], rng: random.Random) -> None:
    container, key = _picked(records, rng)
    container[key] = None


def not_a_number(records: list[Record], rng: random.Random) -> None:
    container, key = _picked(records, rng)
    container[key] = rng.choice([float("nan"), float("inf"), float("-inf")])


def huge_number(records: list[Record], rng: random.Random) -> None:
    container, key = _picked(records, rng)
    container[key] = rng.choice([10 ** rng.randint(20, 4000), -(2**63) - 1, 1e308, 5e-324])


def lone_surrogate(records: list[Record], rng: random.Random) -> None:
    container, key = _picked(records, rng, str)
    container[key] = "Hi " + rng.choice(["\ud83d", "\udc00", "\udfff"]) + " ho"


def swapped_values(records: list[Record], rng: random.Random) -> None:
    (one, key), (other, name) = _picked(records, rng), _picked(records, rng)
    one[key], other[name] = copy.deepcopy(other[name]), copy.deepcopy(one[key])


def empty_value(records: list[Record], rng: random.Random) -> None:
    container, key = _picked(records, rng)
    container[key] = rng.choice(["", " \n", [], {}, [""]])


def extra_field(records: list[Record], rng: random.Random) -> None:
    container = rng.choice([records[0], *(spot[0][spot[1]] for spot in places(records))])
    target = container if isinstance(container, dict) else records[0]
    target[rng.choice(EXTRA)] = copy.deepcopy(rng.choice(ODD))


def doubled_items(records: list[Record], rng: random.Random) -> None:
    container, key = _picked(records, rng, list)
    container[key] = container[key] * 2 if isinstance(container[key], list) else [container[key]] * 2


def mixed_formats(records: list[Record], rng: random.Random) -> None:
    records.insert(rng.randint(0, len(records)), rng.choice(valid(rng.choice(list(formats())), rng)))


def merged_formats(records: list[Record], rng: random.Random) -> None:
    records[0].update(rng.choice(valid(rng.choice(list(formats())), rng)))


def not_an_object(records: list[Any], rng: random.Random) -> None:
    records.insert(rng.randint(0, len(records)), copy.deepcopy(rng.choice(ODD)))


def text_of_a_list(records: list[Record], rng: random.Random) -> None:
    container, key = _picked(records, rng, (list, dict))
    container[key] = rng.choice([json.dumps, repr])(container[key])


RECORD_MUTATIONS: list[Callable[[list[Record], random.Random], None]] = [
    drop_field, rename_field, wrong_type, null, not_a_number, huge_number, lone_surrogate, swapped_values, empty_value,
    extra_field, doubled_items, mixed_formats, merged_formats, not_an_object, text_of_a_list,
]  # fmt: skip


def duplicate_key(text: str, rng: random.Random) -> str:
    """A key given twice, with another value."""
    at = rng.choice([i for i, c in enumerate(text) if c == "{"] or [0])
    key = next(iter(rng.choice(list(formats().values()))))
    return f'{text[: at + 1]}"{key}": 1, "{key}": "other", {text[at + 1 :]}'


def too_deep(text: str, rng: random.Random) -> str:
    depth = rng.choice([150, 250, 900, 3000, 100_000])
    opened, closed = rng.choice([("[", "]"), ('{"a":', "}")])
    at = rng.choice([i for i, c in enumerate(text) if c == ":"] or [0])
    return f'{text[: at + 1]} {opened * depth}1{closed * depth}, "b": {text[at + 1 :]}'


def endless_number(text: str, rng: random.Random) -> str:
    at = rng.choice([i for i, c in enumerate(text) if c == ":"] or [0])
    return f'{text[: at + 1]} {"9" * rng.choice([400, 5000, 20_000])}, "b": {text[at + 1 :]}'


def unclosed(text: str, rng: random.Random) -> str:
    at = rng.choice([i for i, c in enumerate(text) if c in '"{}[],:'] or [0])
    return text[:at] + text[at + 1 :]


TEXT_MUTATIONS: list[Callable[[str, random.Random], str]] = [duplicate_key, too_deep, endless_number, unclosed]


def truncated(raw: bytes, rng: random.Random) -> bytes:
    return raw[: rng.randint(0, max(0, len(raw) - 1))]


def bad_bytes(raw: bytes, rng: random.Random) -> bytes:
    at = rng.randint(0, len(raw))
    return raw[:at] + rng.choice([b"\xff", b"\xc3", b"\x93Hi\x94", b"\xed\xa0\x80", b"\x80\x81\x82"]) + raw[at:]


def flipped_bytes(raw: bytes, rng: random.Random) -> bytes:
    changed = bytearray(raw)
    for _ in range(rng.randint(1, 4)):
        if changed:
            changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def nul_bytes(raw: bytes, rng: random.Random) -> bytes:
    at = rng.randint(0, len(raw))
    return raw[:at] + b"\0" * rng.randint(1, 9) + raw[at:]


def marks(raw: bytes, rng: random.Random) -> bytes:
    """Byte order marks, other line ends, other encodings of all."""
    text = raw.decode("utf-8", "replace")
    return rng.choice([
        b"\xef\xbb\xbf" + raw, b"\xef\xbb\xbf\xef\xbb\xbf" + raw, text.encode("utf-16"), text.encode("utf-32"),
        text.encode("cp1252", "replace"), raw.replace(b"\n", b"\r"), raw.replace(b"\n", b"\r\n"),
    ])  # fmt: skip


BYTE_MUTATIONS: list[Callable[[bytes, random.Random], bytes]] = [truncated, bad_bytes, flipped_bytes, nul_bytes, marks]
MUTATIONS = [mutate.__name__ for mutate in (*RECORD_MUTATIONS, *TEXT_MUTATIONS, *BYTE_MUTATIONS)]


# ----------------------------------------------------------------------------------------------------------- the files


def written(records: list[Any], rng: random.Random, name: str | None = None) -> tuple[str, str]:
    """(file name, text) of records as JSONL, an array, or CSV."""
    name = name or rng.choice(["a.jsonl", "a.jsonl", "a.jsonl", "a.json", "a.csv", "a", "a.txt"])
    if name == "a.csv":
        columns = list(dict.fromkeys(key for one in records if isinstance(one, dict) for key in one))
        lines = [_csv_line(columns)]
        for one in records:
            values = [one.get(key, "") for key in columns] if isinstance(one, dict) else [one]
            write = rng.choice([json.dumps, json.dumps, repr])
            lines.append(_csv_line([v if isinstance(v, str) else write(v) for v in values]))
        return name, "\n".join(lines) + "\n"
    if name == "a.json":
        return name, json.dumps(records, ensure_ascii=rng.random() < 0.8, indent=rng.choice([None, 2]))
    return name, "".join(json.dumps(one) + "\n" for one in records)


def _csv_line(cells: list[str]) -> str:
    return ",".join('"' + str(cell).replace('"', '""') + '"' for cell in cells)


def _columnar(records: list[Record], rng: random.Random) -> tuple[str, bytes] | None:
    """Parquet or Arrow, where the records fit into columns."""
    try:
        table = pyarrow.Table.from_pylist(records)
        sink = io.BytesIO()
        kind = rng.choice(["parquet", "arrow", "stream"])
        if kind == "parquet":
            pyarrow.parquet.write_table(table, sink)
        else:
            new = pyarrow.ipc.new_file if kind == "arrow" else pyarrow.ipc.new_stream
            with new(sink, table.schema) as writer:
                writer.write_table(table)
    except (pyarrow.ArrowException, ValueError, TypeError, OverflowError, AttributeError):
        return None
    return ("a.parquet" if kind == "parquet" else "a.arrow"), sink.getvalue()


def case(format: str, mutation: str, rng: random.Random) -> Case:
    """One malformed file of this format."""
    records: list[Any] = valid(format, rng)
    by_name = {mutate.__name__: mutate for mutate in RECORD_MUTATIONS}
    if mutation in by_name:
        by_name[mutation](records, rng)
    columnar = _columnar(records, rng) if rng.random() < 0.1 else None
    if columnar is not None:
        name, raw = columnar
    else:
        name, text = written(records, rng)
        for mutate in TEXT_MUTATIONS:
            if mutate.__name__ == mutation:
                text = mutate(text, rng)
        raw = text.encode("utf-8", "surrogatepass")
    for damage in BYTE_MUTATIONS:
        if damage.__name__ == mutation:
            raw = damage(raw, rng)
    if rng.random() < 0.1:
        name, raw = name + ".gz", gzip.compress(raw)
        if mutation in ("truncated", "flipped_bytes") and rng.random() < 0.5:
            raw = (truncated if mutation == "truncated" else flipped_bytes)(raw, rng)
    return Case(format, mutation, name, raw)


def cases(count: int, seed: int) -> list[tuple[str, str, int]]:
    """(format, mutation, seed of the case): every format with every mutation before any comes again."""
    grid = [(format, mutation) for format in formats() for mutation in MUTATIONS]
    random.Random(seed).shuffle(grid)
    return [(*grid[i % len(grid)], seed * 1_000_003 + i) for i in range(count)]
