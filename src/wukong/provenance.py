"""How a result came about, written beside it; and so whether a stage is done, half done, or must be refused.

A directory `out/` carries `options.json` from the start (so that another command cannot continue it by accident)
and `provenance.json` when complete; a file `out.jsonl` carries `out.jsonl.provenance.json`, and until then a hidden
`.out.jsonl.options.json` that says whose it is.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

import wukong
from wukong import processes
from wukong.console import say
from wukong.errors import UsageError
from wukong.files import fingerprint, read_json, write_json
from wukong.options import WITHOUT_EFFECT, StageOptions


def _git_commit() -> str | None:
    """The commit of the source tree the package runs from; None for an installed package."""
    root = Path(wukong.__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None


def _input_hash(source: str | Path) -> str | None:
    """A stage's directory by the files it made, anything else (also what a glob names) by its bytes; None for a
    hub id."""
    path = Path(source).expanduser()
    if not path.exists():
        found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
        return _digest([fingerprint(file) for file in found if file.is_file()]) if found else None
    if path.is_dir() and (path / "provenance.json").exists():
        return str(read_json(path / "provenance.json").get("result"))
    return fingerprint(path)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


class Work:
    """One stage's place on disk, from `begin` to `finish`."""

    def __init__(self, stage: str, options: StageOptions, inputs: Sequence[str | Path], directory: bool) -> None:
        self.out = options.out
        self.base = self.out if directory else self.out.parent  # the files made are named relative to it
        self.path = self.out / "provenance.json" if directory else Path(f"{self.out}.provenance.json")
        self.is_directory = directory
        self.started_path = self.out / "options.json" if directory else self.base / f".{self.out.name}.options.json"
        self.record: dict[str, Any] = {
            "stage": stage,
            "options": options.model_dump(mode="json"),
            "inputs": {str(source): _input_hash(source) for source in inputs},
        }
        # An option that came after a result was made counts as its default, which does what was done before.
        fields = type(options).model_fields.items()
        defaults = {name: field.get_default() for name, field in fields if not field.is_required()}
        self.defaults = to_jsonable_python(defaults)
        # What is chosen by the stage now was a fixed number once; what was made with that stays valid.
        extras = {name: field.json_schema_extra for name, field in fields}
        self.usual = {name: extra["usual"] for name, extra in extras.items() if isinstance(extra, dict)}
        self.done = False
        self._begin = time.monotonic()

    def _refuse_if_other(self, path: Path) -> None:
        before = read_json(path)
        if before.get("stage") != self.record["stage"]:
            raise UsageError(f"{self.out}: holds the result of '{before.get('stage')}'; choose another --out")
        old, new = self.defaults | before.get("options", {}), self.record["options"]
        changed = [k for k in {**old, **new} if k not in WITHOUT_EFFECT and old.get(k) != new.get(k)]
        changed = [k for k in changed if not (new.get(k) is None and k in self.usual and old.get(k) == self.usual[k])]
        if changed:
            differences = ", ".join(f"{k}: {old.get(k)} -> {new.get(k)}" for k in sorted(changed))
            raise UsageError(
                f"{self.out}: made with other options ({differences}); use another --out, or make it anew with --redo"
            )
        old_inputs = list(before.get("inputs", {}).values())
        if old_inputs != list(self.record["inputs"].values()):
            raise UsageError(f"{self.out}: made from other input files than now; make it anew with --redo")

    def begin(self) -> Work:
        if self.path.exists():
            self._refuse_if_other(self.path)
            missing = [name for name in read_json(self.path).get("files", {}) if not (self.base / name).exists()]
            if missing:
                say(f"{self.record['stage']}: {self.base / missing[0]} is gone, so {self.out} is made again")
                return self
            self.done = True
            say(f"{self.record['stage']}: {self.out} is complete, nothing to do")
        elif self.is_directory and self.started_path.exists() and self._anything_made():
            self._refuse_if_other(self.started_path)
        else:
            if not self.is_directory and self.out.exists() and not self.started_path.exists():
                raise UsageError(f"{self.out}: a file that wukong did not make; move it away or choose another --out")
            if processes.is_first():
                write_json(self.started_path, self.record)
        return self

    def _anything_made(self) -> bool:
        """Whether a run began here that others could continue: one that stopped at an error in its options did not,
        and must not stand in the way of the corrected command."""
        return any(file != self.started_path and not file.name.startswith(".") for file in self.out.iterdir())

    def _name(self, file: Path) -> str:
        return file.relative_to(self.base).as_posix() if file.is_relative_to(self.base) else str(file.absolute())

    def finish(
        self, results: Mapping[str, Any], files: Sequence[str | Path], compute: Mapping[str, Any] | None = None
    ) -> None:
        """Marks the stage complete. `files` are what it made (hashed), `results` the numbers worth keeping, `compute`
        where and how they were computed, which makes them no other result."""
        hashes = {self._name(Path(f)): fingerprint(f) for f in files}
        write_json(
            self.path,
            {
                **self.record,
                "version": wukong.__version__,
                "git_commit": _git_commit(),
                "seconds": round(time.monotonic() - self._begin, 1),
                "files": hashes,
                "result": _digest(hashes),
                "results": dict(results),
                "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "cpus": os.cpu_count(),
                **({"compute": dict(compute)} if compute else {}),
            },
        )
        if not self.is_directory:
            self.started_path.unlink(missing_ok=True)


def begin(stage: str, options: StageOptions, inputs: Sequence[str | Path] = (), *, directory: bool = True) -> Work:
    """Opens a stage: `.done` says that its complete result already lies there.

    Raises:
        UsageError: an input is missing, or what lies there was made with other options or from other inputs.
    """
    return Work(stage, options, inputs, directory).begin()
