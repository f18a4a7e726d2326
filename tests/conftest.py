"""What all tests share: threads, signals, seeds, real data sets, which tests need other programs, which skips are
allowed."""

import os
import random
import signal
import sys
import tarfile
import zlib

# One thread a process, set before torch is imported: parallel workers with a pool of threads each would spend their
# time waiting for one another, tiny products gain nothing from threads, and the sums of two differ in the last bits.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may depend on the network
os.environ["WUKONG_LANGUAGE"] = "en"  # whatever the language of the machine is

# A shell starts what runs in the background with SIGINT ignored, and every process started here would inherit that:
# the tests of Ctrl-C start from the same disposition however the suite was started.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from tests.postgres_server import PostgresServer, find_postgres

if TYPE_CHECKING:
    import torch

# The same examples each time, however slow the machine is.
_unchecked = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile("suite", deadline=None, derandomize=True, suppress_health_check=_unchecked)
settings.load_profile("suite")

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("WUKONG_SHARED", REPOSITORY.parent / "shared")) / "data"
"""The real data sets that some tests read: $WUKONG_SHARED/data, or ../shared/data beside the repository."""

ALLOWED_SKIPS = ("needs a GPU", "no shared data", "needs PostgreSQL", "needs Chromium", "needs bfloat16 instructions")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="where tests of numerics compute: cpu, cuda or mps")


@pytest.fixture
def device(request: pytest.FixtureRequest) -> "torch.device":
    """The device of tests of numerics; the test fails where a device that was asked for is not there."""
    import torch

    torch.empty(0, device=(name := request.config.getoption("--device")))
    return torch.device(name)


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """A function from a name below shared/data to its path; the test is skipped where the data are absent."""

    def find(name: str) -> Path:
        if not SHARED.is_dir():
            assert not os.environ.get("WUKONG_REQUIRE_SHARED"), f"WUKONG_REQUIRE_SHARED is set, but {SHARED} is absent"
            pytest.skip(f"no shared data at {SHARED}; set WUKONG_SHARED")
        assert (SHARED / name).exists(), f"{SHARED} is there, but {name} is not"
        return SHARED / name

    return find


@pytest.fixture
def older_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of the recipe test that an earlier version (commit d645612) made, but for its report. It is runs/test
    below the working directory, as it did then."""
    monkeypatch.chdir(tmp_path)
    with tarfile.open(Path(__file__).with_name("fixtures") / "run-of-d645612.tar.xz") as kept:
        kept.extractall("runs", filter="data")
    return Path("runs/test")


NEED_PROGRAMS = {"postgres": "PostgreSQL", "chromium": "Chromium"}
"""Fixtures of programs that the Python environment does not bring along."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need another program are `interop` tests, without anybody having to say so at each."""
    for item in items:
        callspec = getattr(item, "callspec", None)
        uses = set(getattr(item, "fixturenames", ()))
        if uses & set(NEED_PROGRAMS) or (callspec and callspec.params.get("database_url") == "postgresql"):
            item.add_marker(pytest.mark.interop)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """What a test draws without a seed of its own is the same each time, alone or after others; before fixtures, which
    draw too. Another test draws something else."""
    seed = zlib.crc32(item.name.encode())
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A real PostgreSQL server of this session's own; the test is skipped where none is installed."""
    if (programs := find_postgres()) is None:
        pytest.skip("needs PostgreSQL (initdb and postgres)")
    with PostgresServer(programs) as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return str(tmp_path / "studio.db")
    return request.getfixturevalue("postgres").new_database()


@pytest.fixture
def before_passes() -> Iterator[Callable[[Callable[..., object]], None]]:
    """A function that installs another one, to wait or to fail: it is called with the model before each pass of any
    language model, in whichever thread."""
    from torch.nn.modules.module import register_module_forward_pre_hook

    from wukong.model.language_model import LanguageModel

    hooks = []

    def install(function: Callable[..., object]) -> None:
        def call(module: object, _: object) -> None:
            if isinstance(module, LanguageModel):
                function(module)

        hooks.append(register_module_forward_pre_hook(call))

    yield install
    for hook in hooks:
        hook.remove()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    """In CI (WUKONG_STRICT_SKIPS) a test that is skipped for any but the allowed reasons has failed."""
    report = yield
    if report.skipped and os.environ.get("WUKONG_STRICT_SKIPS") and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not reason.removeprefix("Skipped: ").startswith(ALLOWED_SKIPS):
            report.outcome, report.longrepr = "failed", f"skipped, which CI does not allow: {reason}"
    return report
