"""Rebuilds message trees from Open Assistant's flat table, in which each message has its parent's id."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from wukong.data.row import Row, is_missing, is_text


def _is_flat(fields: dict[str, Any]) -> bool:
    text, role = fields.get("text"), fields.get("role")
    return "message_id" in fields and "parent_id" in fields and is_text(text) and isinstance(role, str)


def assemble_trees(rows: Iterator[Row]) -> Iterator[Row]:
    """The rows unchanged, except flat messages, which come last as one row per tree, at its root's line."""
    messages: dict[str, Row] = {}
    for row in rows:
        if row.bad is not None or not _is_flat(row.fields):
            yield row
        elif (name := str(row.fields["message_id"])) in messages:
            row.bad = row.error(f"{name[:60]!r} is given twice", "message_id")
            yield row
        else:
            messages[name] = row
    if messages:
        yield from _trees(messages)


def _trees(messages: dict[str, Row]) -> Iterator[Row]:
    nodes: dict[str, dict[str, Any]] = {name: {**row.fields, "replies": []} for name, row in messages.items()}
    children: dict[str, list[str]] = {name: [] for name in messages}
    roots = []
    for name, row in messages.items():
        parent = row.fields["parent_id"]
        if is_missing(parent) or parent == "":
            roots.append(name)
        elif str(parent) in nodes:
            nodes[str(parent)]["replies"].append(nodes[name])
            children[str(parent)].append(name)
    waiting, reached = list(roots), set()
    while waiting:
        reached.add(name := waiting.pop())
        waiting += children[name]
    for root in roots:
        row = messages[root]
        row.fields = {"message_tree_id": row.fields.get("message_tree_id", root), "prompt": nodes[root]}
        yield row
    for name, row in messages.items():
        if name not in reached:
            parent = str(row.fields["parent_id"])[:60]
            row.bad = row.error(f"{parent!r} leads to no root message in this file", "parent_id")
            yield row
