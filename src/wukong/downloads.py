"""Finds a model's files: a directory, or a download from the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from wukong.errors import UsageError


def local_directory(source: str | Path, files: Sequence[str]) -> Path:
    """The directory, or for a Hugging Face hub id the download of these `files` (glob patterns).

    Raises:
        UsageError: no such directory, no such id, or no connection to the hub.
    """
    path, name = Path(source), str(source)
    if path.is_dir():
        return path
    if path.exists():
        raise UsageError(f"{name}: is a file, expected a directory")
    local = isinstance(source, Path) or (path.parent != Path() and path.parent.is_dir())  # a typo, not an id
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
        raise UsageError(f"{name}: no such directory, and not available from the Hugging Face hub: {reason}") from None
