"""`wukong doctor`: is this machine ready for wukong, and what is missing?

    wukong doctor

Prints a line for each check: ok, note (it works, but could be better) or problem, and what to do about it.
"""

from __future__ import annotations

from wukong.errors import RunError
from wukong.options import Options
from wukong.studies.doctor.environment import check_environment


class DoctorOptions(Options):
    """Check the environment: versions, device and precision, kernels, threads, memory, disk, optional extras."""


def run(options: DoctorOptions) -> None:
    """Raises RunError where something that is needed is missing."""
    problems = 0
    for finding in check_environment():
        print(f"{finding.level:<8} {finding.subject:<10} {finding.text}", flush=True)
        if finding.advice:
            print(f"{'':<19} -> {finding.advice}", flush=True)
        problems += finding.level == "problem"
    if problems:
        raise RunError(f"{problems} problem{'s' if problems > 1 else ''} found; see above what to do")
