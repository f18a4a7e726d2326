"""Small files for the readers."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a small file: bytes, text, or records as JSONL; as an array if the name is .json."""

    def put(content: bytes | str | list[Any], name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        if isinstance(content, list):
            as_array = name.removesuffix(".gz").endswith(".json")
            content = json.dumps(content) if as_array else "".join(json.dumps(one) + "\n" for one in content)
        raw = content.encode() if isinstance(content, str) else content
        path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
        return path

    return put
