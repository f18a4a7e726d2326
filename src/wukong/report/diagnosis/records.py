"""The records that the checks read: steps with curves and results, evaluations, label files.

Whatever is missing is left out, never guessed: checks say what they could not look at.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from wukong.errors import DataError, Text, UsageError
from wukong.places import run_of
from wukong.provenance import DIRECTORY_RECORD, STARTED, read_record, record_path
from wukong.report.contents import RunContents, StepResult, read_run, read_steps
from wukong.report.diagnosis.labels import LabelStatistics, label_statistics


@dataclass(frozen=True)
class LabelFile:
    """A file of labels: the step that made it or else learnt from it, and its statistics, or why there are none."""

    path: Path
    step: str
    statistics: LabelStatistics | None
    why: Text = field(default_factory=lambda: Text(""))


@dataclass(frozen=True)
class RunRecords:
    contents: RunContents

    @cached_property
    def labels(self) -> list[LabelFile]:
        """What label stages wrote, and the other labels that reward models and DPO learnt from."""
        places: dict[Path, str] = {}
        for step in self.contents.of_stage("label"):
            if step.finished:
                places[step.out.absolute()] = step.name
        for step in self.contents.steps:
            if step.stage in ("reward", "dpo"):
                for source in step.record["inputs"]:
                    path = Path(source).absolute()
                    if path.is_file() and not _holds_answers(path):
                        places.setdefault(path, step.name)
        return [_label_file(path, step) for path, step in places.items()]

    def labels_of(self, step: StepResult) -> list[LabelStatistics]:
        """The statistics of the labels that a step read."""
        read = {Path(source).absolute() for source in step.record["inputs"]}
        return [one.statistics for one in self.labels if one.path in read and one.statistics is not None]


def _holds_answers(path: Path) -> bool:
    """Whether a file is the responses of `wukong sample`, on which a reward is normalised, and no labels."""
    try:
        record = read_record(path)
    except DataError:
        return False
    return record is not None and record["stage"] == "sample"


def _label_file(path: Path, step: str) -> LabelFile:
    try:
        statistics = label_statistics(path)
    except (UsageError, OSError) as error:
        said = error.text if isinstance(error, UsageError) else Text(str(error))
        return LabelFile(path, step, None, Text("{path} cannot be read: {error}", path=path.name, error=said))
    why = Text("{path} is too large to be read here", path=path.name) if statistics is None else Text("")
    return LabelFile(path, step, statistics, why)


def read_records_of(place: Path) -> RunRecords:
    """A run directory, or the result of a single stage.

    Raises:
        UsageError: there is neither.
        DataError: a file is damaged.
    """
    if not place.exists():
        raise UsageError("{place}: no such directory", place=place)
    if place.is_file() or any((place / name).is_file() for name in (DIRECTORY_RECORD, STARTED)):
        return RunRecords(_single(place))
    return RunRecords(read_run(place))


def _single(place: Path) -> RunContents:
    """The step whose result this is, alone; an evaluation with its answers."""
    complete = record_path(place)
    record = read_record(place) if complete.is_file() else read_record(place / STARTED)
    if record is None:
        raise UsageError("{place}: not the result of a stage", place=place)
    root = run_of(place)
    try:
        around = read_run(root) if record["stage"] == "evaluate" else read_steps(root)
    except UsageError:
        around = RunContents(root, place.name, [])
    alone = StepResult(place.name, record["stage"], place, complete.is_file(), record)
    own = [one for one in around.evaluations if (root / one.name).absolute() == place.absolute()]
    return replace(around, name=place.name, steps=[alone], not_run=[], evaluations=own)
