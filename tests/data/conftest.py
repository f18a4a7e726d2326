"""The real data sets that the tests read: see $WUKONG_SHARED, or ../shared beside the repository."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("WUKONG_SHARED", REPOSITORY.parent / "shared")) / "data"


@pytest.fixture
def shared() -> Callable[[str], Path]:
    """A function from a name below shared/data to its path; the test is skipped where the data are absent."""

    def find(name: str) -> Path:
        if not SHARED.is_dir():
            pytest.skip(f"no shared data at {SHARED}; set WUKONG_SHARED")
        assert (SHARED / name).exists(), f"{SHARED} is there, but {name} is not"
        return SHARED / name

    return find


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
