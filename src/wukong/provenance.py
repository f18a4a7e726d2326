"""The provenance of a result, stored with it; it decides whether a stage is done, unfinished, or must be refused.

A directory `out/` has `options.json` from the start (so that another command cannot continue it by accident) and
`provenance.json` when complete; a file `out.jsonl` has `out.jsonl.provenance.json`, and until complete a hidden
`.out.jsonl.options.json`. `read_record` reads either.

Paths inside the run directory are stored as `{run}/...` (wukong.places), so that a run can be moved. The hashes of a
stage's files are recorded: a result counts as complete, or as an input, only while its files match them.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shlex
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic_core import to_jsonable_python

from wukong import processes
from wukong.console import say
from wukong.errors import DataError, UsageError, brief
from wukong.files import LOCK_SUFFIX, FileLock, acquire_lock, fingerprint, read_json, remove_leftovers, write_json
from wukong.options import WITHOUT_EFFECT, StageOptions
from wukong.places import EVENTS, RECIPE, map_paths, portable, read_recipe, relocate, resolve, run_of
from wukong.version import __version__

DIRECTORY_RECORD, FILE_RECORD, STARTED = "provenance.json", ".provenance.json", "options.json"

# ------------------------------------------------------------------------------------------------------------ reading


def record_path(result: Path) -> Path:
    """The path of a complete result's record."""
    inside = result / DIRECTORY_RECORD
    return inside if result.is_dir() else Path(f"{result}{FILE_RECORD}")


def read_record(result: str | Path) -> dict[str, Any] | None:
    """A result's record: `stage`, `options`, `inputs` (path or hub id -> hash), `files` (relative path -> hash),
    `results` (its numbers), `result` (one hash of all files), `version`, ...

    Paths are current, even if the run was moved. None if there is no record.

    Args:
        result: a directory or file made by a stage, or the record itself.

    Raises:
        DataError: the record is damaged.
    """
    result = Path(result)
    if result.name in (DIRECTORY_RECORD, STARTED):
        path, result = result, result.parent
    elif result.name.endswith(FILE_RECORD):
        path, result = result, result.with_name(result.name.removesuffix(FILE_RECORD))
    else:
        path = record_path(result)
    return _read(path, result) if path.is_file() else None


def _read(path: Path, result: Path) -> dict[str, Any]:
    remedy = f"to rebuild it, delete {result} first"
    try:
        record = read_json(path)
    except DataError as error:
        raise DataError(error.problem, file=path, line=error.line, hint=remedy) from None
    if not isinstance(record, dict) or not isinstance(record.get("stage"), str):
        raise DataError("not a record of a stage", file=path, field="stage", hint=remedy)
    for part in ("options", "inputs", "results", "files"):
        if not isinstance(record.setdefault(part, {}), dict):
            raise DataError("not an object", file=path, field=part)
    said = {name: record[name] for name in ("finished", "result", "seconds", "version") if name in record}
    hashes = {f"{part}.{name}": value for part in ("inputs", "files") for name, value in record[part].items()}
    for name, value in (said | hashes).items():
        if not isinstance(value, int | float if name == "seconds" else str | None):
            raise DataError(f"is {brief(value)}", file=path, field=brief(name, str), hint=remedy)
    return _located(record, path, result)


def _located(record: dict[str, Any], path: Path, result: Path) -> dict[str, Any]:
    """The record with current paths."""
    run = record.get("run")
    if isinstance(run, str):
        place = Path(os.path.normpath(path.parent / run))
        changed = {part: resolve(record[part], place) for part in ("options", "command") if part in record}
        return record | changed | {"inputs": {resolve(name, place): value for name, value in record["inputs"].items()}}
    return record | _translated(record, result)


def _translated(record: dict[str, Any], result: Path) -> dict[str, Any]:
    """`options` and `inputs` of an older version's record, which contains the run's path at that time. If the run was
    the working directory, its path is absent, and inputs that exist in it are its own."""
    now, out = run_of(result), str(record["options"].get("out", ""))
    place = os.path.relpath(result, now)
    if out == place:
        own = {name for name in record["inputs"] if not os.path.isabs(name) and (now / name).exists()}

        def change(value: Any) -> Any:
            return map_paths(value, lambda path: str(now / path) if path in own or path == out else path)
    else:
        named_alike = out.endswith(f"/{place}")
        old = out.removesuffix(f"/{place}") if named_alike else os.path.dirname(out)
        now = now if named_alike else result.parent

        def change(value: Any) -> Any:
            return relocate(value, old, now)

    inputs = {change(name): value for name, value in record["inputs"].items()}
    return {"options": change(record["options"]), "inputs": inputs}


# ----------------------------------------------------------------------------------------------------------- verifying


def _recorded(path: Path) -> Iterator[tuple[Path, str, Path]]:
    """(file, its hash, the result it belongs to) of every recorded file at or below a path."""
    if (record := read_record(path)) is not None:
        base = path if path.is_dir() else path.parent
        yield from ((base / name, str(value), path) for name, value in record["files"].items())
        return
    for above in path.absolute().parents:
        if not (above / DIRECTORY_RECORD).is_file():
            continue
        try:
            record = read_record(above)
        except DataError:  # another tool's file of the same name
            continue
        owner = path.parent / os.path.relpath(above, path.absolute().parent)
        owner = Path(os.path.normpath(owner))
        for name, value in (record or {"files": {}})["files"].items():
            if (above / name).is_relative_to(path.absolute()):
                yield owner / name, str(value), owner


def _found(source: str | Path) -> list[Path]:
    """The local paths of an input; none for a hub id."""
    path = Path(os.path.expanduser(source))
    if path.exists():
        return [path]
    return [file for file in map(Path, sorted(glob.glob(str(path), recursive=True))) if file.is_file()]


def verify(source: str | Path) -> None:
    """Raises DataError if an input made by a stage is not byte-identical to what was recorded; it names the file and
    the command that rebuilds it. Inputs without recorded hashes (other data, older versions) pass."""
    for path in _found(source):
        for file, expected, result in _recorded(path):
            if not os.path.exists(file):  # a damaged record may contain a name that is too long
                raise DataError("is gone", file=file, hint=_remedy(result, accept=False))
            if fingerprint(file) != expected:
                raise _damaged(file, result)


def _damaged(file: Path, result: Path) -> DataError:
    stage = (read_record(result) or {}).get("stage")
    return DataError(f"damaged or changed: not what wukong {stage} wrote", file=file, hint=_remedy(result))


def _remedy(result: Path, accept: bool = True) -> str:
    kept = f"; if you changed it on purpose, keep it: wukong accept {shlex.quote(str(result))}" if accept else ""
    return f"rebuild it: {rebuild_command(result)}{kept}"


def rebuild_command(result: Path) -> str:
    """The command that rebuilds a result."""
    run = run_of(result)
    for step, options in read_recipe(run)["steps"].items():
        if os.path.abspath(str(options.get("out"))) == os.path.abspath(result):
            return shlex.join(["wukong", "run", str(run / "recipe.yaml"), "--redo", step])
    record = read_record(result) or {}
    command = record.get("command")
    if isinstance(command, list):
        return shlex.join([*map(str, command), "--redo"])
    return f"the command that made it (wukong {record.get('stage')}), with --redo"


def accept(result: Path) -> list[str]:
    """Records the current hashes of a result that was changed on purpose. Returns the changed files.

    Raises:
        UsageError: no complete result, or a file of it is missing.
    """
    path = record_path(result)
    record = read_json(path) if path.is_file() else None
    if read_record(result) is None or record is None:
        raise UsageError(f"{result}: no complete result of a stage (no {path.name})")
    base = result if result.is_dir() else result.parent
    if gone := [name for name in record["files"] if not (base / name).is_file()]:
        raise UsageError(f"{base / gone[0]}: is missing; {_remedy(result, accept=False)}")
    hashes = {name: fingerprint(base / name) for name in record["files"]}
    changed = [name for name, value in hashes.items() if value != record["files"][name]]
    if changed:
        accepted = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        write_json(path, record | {"files": hashes, "result": _digest(hashes), "accepted": accepted})
    return changed


# ----------------------------------------------------------------------------------------------------------- one stage


def _git_commit() -> str | None:
    """The commit of the source tree the package runs from; None for an installed package."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None


def _input_hash(source: str | Path) -> str | None:
    """The recorded hash of a stage's result, the content hash of anything else (including globs); None for a hub id or
    a missing file."""
    try:
        return _hash_of(source)
    except OSError as error:
        raise UsageError(f"{source}: cannot be read ({error.strerror or error})") from None


def _hash_of(source: str | Path) -> str | None:
    found = _found(source)
    path = Path(os.path.expanduser(source))
    if found == [path]:
        record = read_record(path)
        if record is None:
            return fingerprint(path)
        if path.is_dir():
            return str(record.get("result"))
        return str(record["files"].get(path.name) or fingerprint(path))
    return _digest([fingerprint(file) for file in found]) if found else None


def changed_since(source: str | Path, recorded: str | None) -> bool:
    """Whether an input is missing or differs from the hash recorded by a stage (None: a hub id)."""
    return not _found(source) or (recorded is not None and _input_hash(source) != recorded)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


State = Literal["new", "begun", "done"]


class StageRun:
    """A stage's result on disk, from `open_run` to `finish`.

    Args:
        later: inputs that an earlier step of the same run has yet to make; they are not examined.
    """

    def __init__(
        self,
        stage: str,
        options: StageOptions,
        inputs: Sequence[str | Path],
        directory: bool,
        later: Sequence[str | Path] = (),
    ) -> None:
        self.stage, self.options, self.out = stage, options, options.out
        self.base = self.out if directory else self.out.parent  # file names in the record are relative to it
        self.path = self.out / DIRECTORY_RECORD if directory else Path(f"{self.out}{FILE_RECORD}")
        self.is_directory = directory
        self.started_path = self.out / STARTED if directory else self.base / f".{self.out.name}.{STARTED}"
        self.run = run_of(self.out)
        self.sources, self.later = list(map(str, inputs)), set(map(str, later))
        self.inputs = {name: None if name in self.later else _input_hash(name) for name in self.sources}
        # An option added since the result was made counts as its default, which reproduces the old behaviour.
        fields = type(options).model_fields.items()
        defaults = {name: field.get_default() for name, field in fields if not field.is_required()}
        self.defaults = to_jsonable_python(defaults)
        # The stage now chooses these; older versions had fixed values, with which results stay valid.
        extras = {name: field.json_schema_extra for name, field in fields}
        self.usual = {name: extra["usual"] for name, extra in extras.items() if isinstance(extra, dict)}
        self.done = False
        self._begin = time.monotonic()
        self._lock: FileLock | None = None

    # -------------------------------------------------------------------------------------- existing results

    def state(self) -> State:
        """The state of `out`, without changing it.

        Raises:
            UsageError: it has other options, inputs or another stage, or was not made by us.
            DataError: a finished result is damaged.
        """
        if self.path.exists():
            record = _read(self.path, self.out)
            self._refuse_if_other(record, finished=True)
            if not record["files"]:
                say("warning: {path} has no hashes (an older version wrote it): whether {out} is whole is "
                    "not known", path=self.path, out=self.out)  # fmt: skip
            for name, expected in record["files"].items():
                file = self.base / name
                if not os.path.exists(file):  # a damaged record may contain a name that is too long
                    say("{stage}: {file} is missing, so {out} is rebuilt", stage=self.stage, file=file, out=self.out)
                    return "new"
                if expected and fingerprint(file) != expected:
                    raise _damaged(file, self.out)
            return "done"
        if self.is_directory and self.started_path.exists() and self._anything_made():
            self._refuse_if_other(_read(self.started_path, self.out), finished=False)
            return "begun"
        if not self.is_directory and self.out.exists() and not self.started_path.exists():
            raise UsageError(f"{self.out}: not made by wukong; move it away or choose another --out")
        if self.is_directory and not self.started_path.exists() and (file := self._foreign()) is not None:
            raise UsageError(f"{self.out}: holds {file.name}, which was not made by wukong; choose another --out")
        self._refuse_inside_inputs()
        return "new"

    def _refuse_if_other(self, before: dict[str, Any], finished: bool) -> None:
        if before["stage"] != self.stage:
            raise UsageError(f"{self.out}: holds the result of '{before['stage']}'; choose another --out")
        old, new = self.defaults | before["options"], self.options.model_dump(mode="json")
        names = {*self.sources, *before["inputs"]}

        def same(a: Any, b: Any) -> bool:
            """Whether two values are equal, or paths to the same place or to equal files."""
            if a == b or portable(a, self.run, names) == portable(b, self.run, names):
                return True
            result: bool = map_paths(a, lambda path: before["inputs"].get(path) or path) == map_paths(
                b, lambda path: self.inputs.get(path) or path
            )
            return result

        changed = [k for k in {**old, **new} if k not in WITHOUT_EFFECT and not same(old.get(k), new.get(k))]
        changed = [k for k in changed if not (new.get(k) is None and k in self.usual and old.get(k) == self.usual[k])]
        if changed:
            differences = ", ".join(f"{k}: {old.get(k)} -> {new.get(k)}" for k in sorted(changed))
            raise UsageError(
                "{out}: made with other options ({differences}); choose another --out, or rebuild it with {redo}",
                out=self.out,
                differences=differences,
                redo="--redo",
            )
        if self._other_inputs(list(before["inputs"].values()), finished):
            problem = "{out}: made from different input files; rebuild it with {redo}"
            raise UsageError(problem, out=self.out, redo="--redo")

    def _other_inputs(self, old: list[Any], finished: bool) -> bool:
        """Whether the inputs' hashes differ. Inputs without a hash do not count: hub ids, older versions', ones that an
        earlier step will make, and missing ones, which a finished stage does not need."""
        new = list(self.inputs.items())
        if len(old) != len(new):  # older versions did not record all of them
            return not self.later and bool({value for value in old if value} - set(self.inputs.values()))
        for before, (name, now) in zip(old, new, strict=True):
            unknown = before is None or name in self.later or (now is None and finished)
            if not unknown and before != now:
                return True
        return False

    def _foreign(self) -> Path | None:
        """A file in `out` that no stage made: a model from elsewhere, someone's data. The stage might overwrite files
        of the same name."""
        if not self.out.is_dir() or self.path.exists():
            return None
        files = (file for file in sorted(self.out.iterdir()) if file.is_file() and not file.name.startswith("."))
        return next((file for file in files if file.name not in (RECIPE, EVENTS)), None)

    def _refuse_inside_inputs(self) -> None:
        """Refuses a result inside an input: it would change the input, and the stage would never be complete."""
        out = Path(os.path.abspath(self.out))
        for source in self.sources:
            path = Path(os.path.abspath(os.path.expanduser(source)))
            inside = out.is_relative_to(path) and path.is_dir() and read_record(path) is None
            if inside or (not path.exists() and glob.has_magic(str(path)) and out.match(str(path))):
                raise UsageError(f"{self.out}: is inside the input {source}; choose another --out")

    def _anything_made(self) -> bool:
        """Whether there is a started run that could be continued: one that stopped at an error in its options does not
        count, so that the corrected command can run."""
        return any(file != self.started_path and not file.name.startswith(".") for file in self.out.iterdir())

    # --------------------------------------------------------------------------------- opening and finishing

    def open(self) -> StageRun:
        if processes.is_first():
            place = self.out if self.is_directory else self.base / f".{self.out.name}{LOCK_SUFFIX}"
            self._lock = acquire_lock(
                place, f"{self.out}: in use by another process; wait until it ends, or choose another --out"
            )
        state = self.state()
        if state == "done":
            self.done = True
            say("{stage}: {out} is complete, nothing to do", stage=self.stage, out=self.out)
            self._release()
            return self
        for source in self.sources:
            verify(source)
        if processes.is_first():
            remove_leftovers(self.out.parent, glob.escape(self.out.name))
            if self.is_directory:
                remove_leftovers(self.out, deep=True)
            if state == "new" and not self.path.exists():
                write_json(self.started_path, self.record())
        return self

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def record(self) -> dict[str, Any]:
        """The record at the start of the stage, with `{run}` in paths."""
        typed = (str(value) for value in self.options.model_dump().values() if isinstance(value, Path))
        paths, options = {*self.sources, *typed}, self.options.model_dump(mode="json")
        given = {name: value for name, value in options.items() if value != self.defaults.get(name)}
        command = ["wukong", self.stage, *(word for name, value in given.items() for word in _words(name, value))]
        return {
            "stage": self.stage,
            "run": os.path.relpath(os.path.abspath(self.run), os.path.abspath(self.started_path.parent)),
            "options": portable(options, self.run, paths),
            "inputs": {portable(name, self.run, paths): value for name, value in self.inputs.items()},
            "command": portable(command, self.run, paths),
        }

    def _name(self, file: Path) -> str:
        return file.relative_to(self.base).as_posix() if file.is_relative_to(self.base) else str(file.absolute())

    def finish(
        self, results: Mapping[str, Any], files: Sequence[str | Path], compute: Mapping[str, Any] | None = None
    ) -> None:
        """Marks the stage complete. `files` are its output (hashed), `results` its key numbers, `compute` the hardware
        and precision, which are not compared."""
        hashes = {self._name(Path(f)): fingerprint(f) for f in files}
        write_json(
            self.path,
            {
                **self.record(),
                "version": __version__,
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
        self._release()


def _words(option: str, value: Any) -> list[str]:
    """An option as command-line words."""
    flag = option.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    return [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]


def open_run(
    stage: str, options: StageOptions, inputs: Sequence[str | Path] = (), *, directory: bool = True
) -> StageRun:
    """Opens a stage; `.done` says that its result is already complete. Until it finishes, no other process can open a
    stage at the same place.

    Raises:
        UsageError: an existing result has other options or inputs, or is in use by another process.
        DataError: the result or an input is damaged.
    """
    return StageRun(stage, options, inputs, directory).open()


def stage_state(
    stage: str,
    options: StageOptions,
    inputs: Sequence[str | Path],
    *,
    directory: bool,
    later: Sequence[str | Path] = (),
) -> State:
    """The state that `open_run` would find, without changing anything. Errors as there."""
    return StageRun(stage, options, inputs, directory, later).state()
