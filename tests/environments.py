"""Virtual environments of their own for programs that are tested against, and would not live with our dependencies.

They lie outside of the repository, in ~/.cache/wukong-tests, and are made once, by pip from the package index.
"""

import hashlib
import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import pytest
from filelock import FileLock

CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "wukong-tests"


def environment(name: str, requirements: Sequence[str], *, shared: bool = False) -> Path:
    """The directory of the environment's programs; the test is skipped, which CI does not allow, where pip fails.

    Args:
        requirements: what pip is to install, exact versions.
        shared: packages of the environment that runs the tests are visible there behind its own, so that torch, a
            gigabyte, is not installed twice. A venv with system site packages would show those of the interpreter
            below instead.
    """
    # Of the packages that are shared a change counts too: another interpreter or torch needs another environment.
    below = (sys.prefix, sys.version, *_versions()) if shared else (sys.version,)
    mark = hashlib.sha256(repr((list(requirements), below)).encode()).hexdigest()[:8]
    home = CACHE / f"{name}-{mark}"
    programs = home / ("Scripts" if os.name == "nt" else "bin")
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{home}.lock"):
        if not (home / "complete").exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
            python = str(programs / "python")
            if shared:
                ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
                own = subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip()
                (Path(own) / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
            pip = [python, "-m", "pip", "install", "--quiet", *requirements]
            done = subprocess.run([*(["nice"] if os.name == "posix" else []), *pip], check=False, capture_output=True)
            if done.returncode:
                pytest.skip(f"no {name}: it cannot be installed ({done.stderr.decode()[-300:]})")
            (home / "complete").touch()
    return programs


def _versions() -> list[str]:
    from importlib.metadata import version

    return [version(name) for name in ("torch", "transformers", "datasets", "numpy")]
