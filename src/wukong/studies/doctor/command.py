"""`wukong doctor`: what is wrong with a run, why, and what to change; without a run, is this machine ready?

    wukong doctor runs/mine

With a run directory, or the result of one stage, it reads curves, samples, labels and data, and prints each finding
with its evidence, the confidence in it, and what to change (docs/tools/doctor.md). Without one it checks the
environment: a line for each check, ok, note (it works, but could be better) or problem, and what to do about it.
"""

from __future__ import annotations

from pathlib import Path

from wukong.errors import RunError, UsageError
from wukong.language import counted, spoken
from wukong.options import Options
from wukong.studies.doctor.environment import check_environment
from wukong.wide_text import narrowed, widened


class DoctorOptions(Options):
    """What is wrong with a run, or, without one, with the environment: versions, device, kernels, disk, extras."""

    run: Path | None = None
    """A run directory, or the result of one stage. Default: none, which checks the environment."""
    as_json: bool = False
    """Print the findings about a run as JSON."""
    strict: bool = False
    """Exit with code 1 if there is a red finding about a run."""


def run(options: DoctorOptions) -> None:
    """Raises RunError where something that the environment needs is missing, or for a red finding with --strict;
    UsageError or DataError for a directory that holds no run, or a damaged file in it."""
    if options.run is None:
        if options.as_json or options.strict:
            raise UsageError("--as-json and --strict are about a run: name its directory")
        _environment()
        return
    from wukong.studies.doctor.runs import report_on  # imported here: the environment may lack what it needs

    red = report_on(options.run, options.as_json)
    if options.strict and red:
        raise RunError("{n} red findings in {run}", n=red, run=options.run)


def _environment() -> None:
    problems = 0
    for finding in check_environment():
        level, subject = (_column(word, columns) for word, columns in ((finding.level, 8), (finding.subject, 10)))
        print(f"{level} {subject} {spoken(finding.text)}", flush=True)
        if finding.advice:
            print(f"{'':<19} -> {spoken(finding.advice)}", flush=True)
        problems += finding.level == "problem"
    if problems:
        raise RunError(
            counted(problems, "{n} problem found; see above what to do", "{n} problems found; see above what to do")
        )


def _column(word: str, columns: int) -> str:
    """A word of the terminal's language, with spaces up to this width."""
    return narrowed(f"{widened(spoken(word)):<{columns}}")
