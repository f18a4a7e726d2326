"""What the application keeps while it runs: one object, which every request reaches through `Studio`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, Request

from wukong.feedback.store.database import Store
from wukong.web.inspectors import Inspectors
from wukong.web.jobs import Jobs
from wukong.web.limits import RateLimiter
from wukong.web.models import Models
from wukong.web.streams import AnswerStreams

SECRET = "WUKONG_ADMIN_SECRET"
"""The environment variable that has the admin secret."""
LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True)
class Settings:
    """How the studio is served.

    Attributes:
        run_dir: the run whose models people may talk to and whose responses admins may use; None if there is none.
        models: more models to talk to, name -> directory or hub id.
        hosts: the host names it answers to; None for any, which only a server beyond the loopback should have.
        admin_secret: what becoming an admin takes besides the invitation.
        secure: send cookies over HTTPS only.
    """

    run_dir: Path | None = None
    models: Mapping[str, str] = field(default_factory=dict)
    hosts: tuple[str, ...] | None = LOCAL_NAMES
    admin_secret: str | None = None
    secure: bool = False

    @property
    def runs_dir(self) -> Path:
        """The directory of the runs that admins see: the one around `run_dir`, or in runs/ here."""
        return self.run_dir.absolute().parent if self.run_dir else Path("runs").absolute()


@dataclass
class State:
    """The parts of a studio.

    Attributes:
        store: the label store; the caller that opened it closes it.
        signing_key: what CSRF tokens are made with.
        ratings: the arena's table, and the number of battles that it was made of.
    """

    store: Store
    settings: Settings
    signing_key: str
    models: Models
    jobs: Jobs = field(default_factory=Jobs)
    limiter: RateLimiter = field(default_factory=RateLimiter)
    streams: AnswerStreams = field(default_factory=AnswerStreams)
    inspectors: Inspectors = field(default_factory=Inspectors)
    ratings: tuple[int, list[dict[str, Any]]] | None = None


def state_of(request: Request) -> State:
    """The studio that a request came to."""
    state: State = request.app.state.studio
    return state


async def _state(request: Request) -> State:
    """As a dependency: FastAPI runs `async` ones in place, and others in a thread, which costs more than they do."""
    return state_of(request)


Studio = Annotated[State, Depends(_state)]
