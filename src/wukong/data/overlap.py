"""Which prompts of an evaluation were used in training, according to the provenance of its models.

Every stage records its inputs (wukong.provenance), so a model can be traced back to the data of its RL stages, reward
model and SFT, and to the pretraining text. Their prompts are compared with those of the evaluation as normalised text:
case, white space, Unicode forms, system messages and trailing punctuation are ignored. The pretraining text is searched
for the words of each prompt. What cannot be checked is listed, never counted as 0.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from wukong.data.comparisons import load_comparisons
from wukong.data.instructions import load_instructions
from wukong.data.prompts import PromptOptions, load_prompts
from wukong.data.sources import DataOptions
from wukong.data.split import halves, split_by_prompt
from wukong.data.text import TextOptions, iter_text, normalised
from wukong.errors import DataError, Text, UsageError
from wukong.language import joined
from wukong.model.families import PRESET_CONFIGS
from wukong.options import POLICY_STAGES
from wukong.places import split_path
from wukong.provenance import changed_since, read_record
from wukong.records import Conversation, Message, Preference, Prompt

Record = dict[str, Any]
Key = tuple[tuple[str, str], ...]
FEWEST_WORDS = 4
"""Prompts with fewer words occur in texts by chance, so the pretraining text is not searched for them."""
MOST_WORDS = 20_000_000
"""The number of words of pretraining text searched; takes about ten seconds."""
EXAMPLES = 3
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")  # a Chinese character is a word


def _key(messages: Sequence[Message]) -> Key:
    return tuple((m.role, normalised(m.content)) for m in messages if m.role != "system")


def _asked(messages: Sequence[Message]) -> Iterator[Key]:
    """The prompts of a conversation: its prefixes that end with a user turn."""
    for i, message in enumerate(messages):
        if message.role == "user":
            yield _key(messages[: i + 1])


@dataclass
class _Found:
    """The findings so far."""

    keys: dict[Key, list[int]]
    words: dict[tuple[str, ...], list[tuple[int, list[str]]]]  # by the first FEWEST_WORDS words
    seen: set[int] = field(default_factory=set)
    in_text: set[int] = field(default_factory=set)
    checked: list[dict[str, Any]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    unchecked: dict[str, str] = field(default_factory=dict)
    visited: set[str] = field(default_factory=set)


def overlap(prompts: Sequence[Sequence[Message]], results: Iterable[str | Path]) -> dict[str, Any]:
    """How many prompts of an evaluation were used in training.

    Args:
        prompts: those of the evaluation.
        results: what is evaluated and what judges it: model directories, hub ids, or files of answers, whose records
            name their models.

    Returns:
        `prompts` and `seen` (the number of prompts, and of those used in training), `examples` of the latter, `checked`
        (stage, source, its prompts, shared ones), `text` (sources, prompts searched, found), `unchecked` (source,
        reason) and `words`, a summary in one sentence.
    """
    keys: dict[Key, list[int]] = defaultdict(list)
    words: dict[tuple[str, ...], list[tuple[int, list[str]]]] = defaultdict(list)
    for i, messages in enumerate(prompts):
        keys[_key(messages)].append(i)
        own = _WORD.findall(normalised(messages[-1].content)) if messages else []
        if len(own) >= FEWEST_WORDS:
            words[tuple(own[:FEWEST_WORDS])].append((i, own))
    found = _Found(dict(keys), dict(words))
    for result in dict.fromkeys(map(str, results)):
        _visit(result, found)
    answer: dict[str, Any] = {
        "prompts": len(prompts),
        "seen": len(found.seen),
        "examples": [prompts[i][-1].content for i in sorted(found.seen)[:EXAMPLES]],
        "checked": found.checked,
        "text": {
            "sources": found.texts,
            "searched": sum(map(len, words.values())),
            "found": len(found.in_text),
            "examples": [prompts[i][-1].content for i in sorted(found.in_text)[:EXAMPLES]],
        },
        "unchecked": [{"source": source, "why": why} for source, why in found.unchecked.items()],
    }
    return answer | {"words": in_words(answer)}


# ----------------------------------------------------------------------------------------------------- tracing


def _visit(result: str, found: _Found) -> None:
    """Checks the sources of a model, token shards or answers, once."""
    if result in found.visited:
        return
    found.visited.add(result)
    try:
        record = _record_of(result)
    except DataError as error:
        found.unchecked[result] = f"its record is damaged ({error})"
        return
    if record is None:
        found.unchecked[result] = "its training data are not recorded"
        return
    options, stage = record["options"], record["stage"]
    if stage in ("sample", "evaluate", "compare"):
        models = options.get("models") or []
        if not models and options.get("endpoint_model"):
            models = [options["endpoint_model"]]
        for model in models:
            _visit(split_path(str(model))[1], found)
    elif stage == "tokenize":
        for source in options.get("data", []):
            _usable(record, source, found, lambda source: _search(options, source, found))
    elif stage in _READERS:
        for source in options.get(_SOURCES.get(stage, "prompts"), []):
            _usable(record, source, found, lambda source: _compare(record, source, found))
    elif stage != "pretrain":
        found.unchecked[result] = f"it is a result of '{stage}'"
    for source in _ancestors(stage, options):
        _visit(source, found)


def _record_of(result: str) -> Record | None:
    """The record of a model, of an intermediate policy kept by a run, of shards, or of a file of answers."""
    path = Path(result)
    places = [path]
    if path.parent.name == "policies":
        places.append(path.parent.parent)
    if path.is_file() or path.name in ("train", "valid"):
        places.append(path.parent)
    return next(
        (record for place in places if (record := read_record(place) or _unfinished_record(place)) is not None), None
    )


def _unfinished_record(place: Path) -> Record | None:
    """The record of an unfinished run, whose intermediate policies can be evaluated too."""
    return read_record(place / "options.json") if (place / "options.json").is_file() else None


def _ancestors(stage: str, options: Record) -> list[str]:
    """The models and token shards that a stage started from or trained on."""
    if stage == "pretrain":
        model = str(options.get("model"))
        return [str(options.get("data")), *([] if model in PRESET_CONFIGS else [model])]
    if stage not in _READERS:
        return []
    rewards = [split_path(str(term))[1].strip() for term in options.get("rewards") or []]
    named = [
        options.get("model"),
        options.get("reward_model"),
        *(options.get("ensemble") or []),
        options.get("ptx_data"),
    ]
    return [str(name) for name in [*named, *(name for name in rewards if Path(name).is_dir())] if name]


def _usable(record: Record, source: str, found: _Found, check: Callable[[str], None]) -> None:
    """Checks a source, or records why that is impossible."""
    name = f"{record['stage']}:{source}"
    if name in found.visited:
        return
    found.visited.add(name)
    try:
        if changed_since(source, record["inputs"].get(str(source))):
            found.unchecked[source] = f"{record['stage']} was trained on it, but it is missing or has changed since"
            return
        check(source)
    except (UsageError, DataError, ValidationError, OSError) as error:
        reason = str(error).splitlines()[0].removeprefix(f"{source}: ")
        found.unchecked[source] = f"{record['stage']} was trained on it, but it cannot be read: {reason}"


# ------------------------------------------------------------------------------------------------------- comparing


_SOURCES = {"sft": "data", "reward": "data", "dpo": "data", "kto": "data"}
_READERS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(POLICY_STAGES, load_prompts),
    "sft": load_instructions,
    "reward": load_comparisons,
    "dpo": load_comparisons,
    "kto": load_comparisons,
}


def _reading(kind: type[DataOptions], options: Record) -> Any:
    return kind.model_validate({name: options[name] for name in kind.model_fields if name in options})


def _trained_on(record: Record, source: str) -> Sequence[Conversation | Preference | Prompt]:
    """The records of a source that the stage was trained on, without held-out prompts."""
    stage, options = record["stage"], record["options"]
    read = _READERS[stage](source, _reading(PromptOptions if stage not in _SOURCES else DataOptions, options))
    held_out = options.get("valid_fraction" if stage in _SOURCES else "holdout") or 0.0
    seed, records = int(options.get("seed") or 0), read.records
    if held_out and not options.get("eval_data"):
        records = split_by_prompt(records, held_out, seed)[0]
    if options.get("half", "both") != "both":
        records = halves(records, seed)[options["half"] == "second"]
    result: Sequence[Conversation | Preference | Prompt] = records
    return result


def _compare(record: Record, source: str, found: _Found) -> None:
    seen: set[int] = set()
    used: set[Key] = set()
    for one in _trained_on(record, source):
        for key in _asked(one.messages if isinstance(one, Conversation | Prompt) else one.prompt):
            used.add(key)
            seen.update(found.keys.get(key, ()))
    found.seen |= seen
    found.checked.append({"stage": record["stage"], "source": source, "prompts": len(used), "seen": len(seen)})


def _search(options: Record, source: str, found: _Found) -> None:
    """Searches the documents of a source for the prompts, word for word."""
    size = 0
    for text in iter_text(source, _reading(TextOptions, options)):
        own = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
        for at, begin in enumerate(zip(own, own[1:], own[2:], own[3:], strict=False)):
            for i, words in found.words.get(begin, ()):
                if own[at : at + len(words)] == words:
                    found.in_text.add(i)
        size += len(own)
        if size > MOST_WORDS:
            found.unchecked[source] = f"only its first {MOST_WORDS:,} words were searched"
            break
    found.texts.append(source)


# -------------------------------------------------------------------------------------------------------- in words


def in_words(found: Record) -> Text:
    """A short summary: how many prompts were used in training, what was searched, what could not be checked."""
    said: list[str] = []
    n, text, unchecked = found["prompts"], found["text"], found["unchecked"]
    if found["seen"]:
        of = _listed([f"{one['stage']} ({one['seen']:,})" for one in found["checked"] if one["seen"]])
        example = " ".join(found["examples"][0].split())
        example = f"{example[:80]} …" if len(example) > 80 else example
        seen = 'warning: {seen:,} of {n:,} prompts were used in training, by {stages}, such as "{example}"'
        said.append(Text(seen, seen=found["seen"], n=n, stages=of, example=example))
    elif found["checked"]:
        of = _listed([f"{one['stage']} ({one['prompts']:,})" for one in found["checked"]])
        said.append(
            Text("0 of {n:,} prompts were used in training: compared with the prompts of {stages}", n=n, stages=of)
        )
    else:
        said.append(Text("could not check whether any of the {n:,} prompts were used in training", n=n))
    if text["sources"] and text["searched"]:
        occur = "{found:,} of the {searched:,} prompts of {least} words or more occur verbatim in the pretraining text"
        said.append(Text(occur, found=text["found"], searched=text["searched"], least=FEWEST_WORDS))
    if unchecked:
        names = "; ".join(f"{one['source']} ({one['why']})" for one in unchecked)
        said.append(Text("not checked: {names}", names=names))
    return joined(said, "{a}; {b}")


def _listed(parts: Sequence[str]) -> Text:
    distinct = list(dict.fromkeys(parts))
    return joined([joined(distinct[:-1]), distinct[-1]] if len(distinct) > 1 else distinct, "{a} and {b}")
