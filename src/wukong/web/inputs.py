"""What a request may say: every number has bounds that the databases share, every text can be stored and sent back.

Path and query parameters and fields of JSON bodies are of these types; fields of forms are read by these functions.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, ParamSpec, TypeVar

import anyio.to_thread
from anyio import CapacityLimiter
from anyio.lowlevel import RunVar
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from starlette.datastructures import FormData

from wukong.errors import DataError, UsageError
from wukong.feedback.store.tables import check_json, check_text

ONE_OF = "{name} is {value!r}; it must be one of {values}"
MOST = 2**31 - 1
"""The largest number of a row: PostgreSQL's integer."""


def _storable(text: str) -> str:
    try:
        check_text(text)
    except DataError as error:
        raise ValueError(error.problem) from None
    return text


Id = Annotated[int, Field(ge=0, le=MOST)]
"""The number of a row."""
Count = Annotated[int, Field(ge=-MOST, le=MOST)]
"""A page, or how many are asked for; the nearest possible one is taken."""
Name = Annotated[str, Field(max_length=2000)]
"""What is looked up among what there is, and goes nowhere else."""
Words = Annotated[str, Field(max_length=2000), AfterValidator(_storable)]
"""What is searched for or stored."""


class Body(BaseModel):
    """A JSON body; see `wukong.strict_json` for what JSON readers let through and no one behind them can take."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _can_be_kept(cls, value: Any) -> Any:
        try:
            check_json(value)
        except DataError as error:
            raise ValueError(error.problem) from None
        return value


class WithClientId(Body):
    client_id: str = Field(min_length=8, max_length=200)
    """A random id: the same one again, after an answer that was lost, adds nothing."""


# --------------------------------------------------------------------------------------------------------- of a form


def text(form: FormData, name: str) -> str:
    """A field of a form, "" when it is absent or a file. Raises DataError for text that cannot be stored."""
    value = form.get(name)
    return _form_text(value, name) if isinstance(value, str) else ""


def texts(form: FormData, name: str) -> list[str]:
    """All fields of this name."""
    return [_form_text(value, name) for value in form.getlist(name) if isinstance(value, str)]


def _form_text(value: str, name: str) -> str:
    try:
        check_text(value)
    except DataError as error:
        raise DataError(error.problem, field=name) from None
    return value.replace("\r\n", "\n")


def number(form: FormData, name: str, default: float, low: float, high: float) -> float:
    """A number of a form, the default when it is empty. Raises UsageError unless it is a number within the bounds."""
    written = text(form, name).strip()
    try:
        found = float(written) if written else default
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise UsageError("{name}: {text!r} is not a number", name=name, text=written[:100])
    if not low <= found <= high:
        raise UsageError(
            "{name} is {value:g}; it must lie between {low:g} and {high:g}", name=name, value=found, low=low, high=high
        )
    return found


def whole(form: FormData, name: str, default: int, low: int = 0, high: int = MOST) -> int:
    """As `number`, without the part behind the point."""
    return int(number(form, name, default, low, high))


# ----------------------------------------------------------------------------------------------- waiting for the writer

WRITING = 8
"""Requests that may wait in a thread for their turn to write; more wait without a thread."""

_limiter: RunVar[CapacityLimiter] = RunVar("wukong_writing")
P = ParamSpec("P")
R = TypeVar("R")


async def in_turn(work: Callable[[], R]) -> R:
    """Runs what writes into the store in a thread. However many wait there, threads are left for those who only read:
    writers have a separate limit."""
    try:
        limiter = _limiter.get()
    except LookupError:
        limiter = CapacityLimiter(WRITING)
        _limiter.set(limiter)
    return await anyio.to_thread.run_sync(work, limiter=limiter)


def writes(endpoint: Callable[P, R]) -> Callable[P, Coroutine[Any, Any, R]]:
    """Marks an endpoint that writes: it runs as FastAPI runs others, but `in_turn`."""

    @functools.wraps(endpoint)
    async def waiting(*args: P.args, **kwargs: P.kwargs) -> R:
        return await in_turn(functools.partial(endpoint, *args, **kwargs))

    return waiting
