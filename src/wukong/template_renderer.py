"""Renders chat templates as `transformers` does. Imports nothing from the package, so that it can run as a separate
process.

Templates come with models and are untrusted. Jinja's sandbox protects the file system, but does not stop endless loops
or terabyte allocations, and a running template cannot be interrupted. So `wukong.chat_template` starts this file as a
program: one JSON request per line on standard input, one JSON answer per line on standard output. A CPU timer and a
memory limit kill this process without affecting the caller.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import signal
import sys
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 1.0
"""CPU seconds per rendering; typical templates take less than a millisecond."""
MEMORY = 1 << 29
"""Address-space limit of the process in bytes."""
LONGEST_ERROR = 300


class _Generation(Extension):
    """`{% generation %}` marks the assistant's text; its content is rendered unchanged."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return [nodes.Scope(body, lineno=parser.stream.current.lineno)]


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


@lru_cache(maxsize=16)
def _compiled(source: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(source)


def answer(request: dict[str, Any]) -> dict[str, str]:
    """{"text": ...} or {"error": one line} for a request {"source", "variables", "most_characters"}."""
    try:
        text, room = [], request["most_characters"]
        for piece in _compiled(request["source"]).generate(**request["variables"]):
            room -= len(piece)
            if room < 0:
                return {"error": f"it writes more than {request['most_characters']:,} characters"}
            text.append(piece)
        return {"text": "".join(text)}
    except jinja2.TemplateSyntaxError as error:
        return {"error": f"line {error.lineno}: {_line(error.message)}"}
    except RecursionError:
        return {"error": "it nests too deeply"}
    except MemoryError:
        return {"error": "it needs too much memory"}
    except jinja2.TemplateError as error:
        return {"error": _line(error.message) or type(error).__name__}
    except Exception as error:  # a template can raise anything
        return {"error": _line(str(error)) or type(error).__name__}


def _line(text: str | None) -> str:
    """Untrusted text, shortened for our one-line message."""
    shown = " ".join(str(text or "").split())
    return shown if len(shown) <= LONGEST_ERROR else shown[:LONGEST_ERROR] + "…"


def main() -> None:
    """Answers requests until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent process
    with contextlib.suppress(ImportError, ValueError, OSError):  # no such limits on Windows; the caller has a time-out
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in sys.stdin.buffer:
        with_timer = hasattr(signal, "setitimer")
        if with_timer:  # unhandled, the signal ends the process even inside a C function
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
        reply = json.dumps(answer(json.loads(line)))
        if with_timer:
            signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(reply + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
