"""Chat templates: finding a model's template, and rendering messages with it.

The two shipped templates run in this process; any other, from unknown authors, in a separate one with limits on time,
memory and output (`wukong.template_renderer`).
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from wukong import template_renderer
from wukong.errors import UsageError
from wukong.files import whole_text

TEMPLATES = Path(__file__).parent / "templates"
DEFAULT_TEMPLATE = "alpaca"
LONGEST_TEMPLATE = 1 << 20
"""Maximum characters of a template; output up to this length is always allowed."""
BEGIN = "{{- bos_token -}}\n"
"""Comes before a shipped template if the model's texts begin with a token."""
_FIXED = {"enable_thinking": False, "date_string": "26 Jul 2024"}
"""What templates of others may ask for. Qwen3 answers at once, as the answers that it learns from and is compared with;
the date in Llama 3's system prompt is the one that it names itself where it knows no other: tokens must be the same
tomorrow."""
WALL_SECONDS = 60.0
"""Wall-clock limit, for systems without CPU timers, or so busy that these hardly advance."""


class ChatTemplate:
    """A Jinja template, rendered as in `transformers`.

    Args:
        template: "alpaca", "plain", the path of a Jinja file, or Jinja source.
        roles: the special tokens available to it, such as {"eos_token": "<|endoftext|>"}.
        specials: the texts of all special tokens.
        begin_with_bos: whether the model's texts begin with `bos_token`: then a shipped template writes it first, as
            the models' own templates do.

    Attributes:
        source: Jinja source.
        end: the text of the special token that ends an assistant's turn.
        answer_follows_text: whether a generation prompt ends with ordinary text, not with a special token.

    Raises:
        UsageError: the template cannot be used.
    """

    def __init__(
        self,
        template: str | Path,
        roles: Mapping[str, str],
        specials: Iterable[str],
        *,
        begin_with_bos: bool = False,
    ) -> None:
        name, self.source = _source_of(template)
        if begin_with_bos and name in _shipped():
            self.source = BEGIN + self.source
        self._name, self._roles = f"chat template {name}", dict(roles)
        if len(self.source) > LONGEST_TEMPLATE:
            raise UsageError(f"{self._name}: longer than {LONGEST_TEMPLATE:,} characters")
        self._is_shipped = self.source.removeprefix(BEGIN) in _shipped().values()
        probe = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
        prompt = self.render(probe[:1], True)
        said = self._beyond(prompt, self.render(probe, False))
        ends = [text for text in sorted(specials, key=len, reverse=True) if said.startswith("A" + text)]
        if not ends:
            raise UsageError(
                f"{self._name}: after the generation prompt, an assistant turn must be the content and a special "
                f"token such as {roles.get('eos_token')} (eos_token), not {said[:80]!r}; choose another with "
                "template='alpaca'"
            )
        self.end: str = ends[0]
        self.answer_follows_text = bool(prompt) and not prompt.endswith(tuple(specials))

    def render(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        """The conversation as text. Raises UsageError if the template fails or exceeds a limit."""
        request = {
            "source": self.source,
            "variables": {
                **_FIXED,
                **self._roles,
                "messages": messages,
                "tools": None,
                "documents": None,
                "add_generation_prompt": add_generation_prompt,
            },
            "most_characters": LONGEST_TEMPLATE + 8 * sum(len(message["content"]) for message in messages),
        }
        reply = template_renderer.answer(request) if self._is_shipped else _process.ask(request)
        if "error" in reply:
            raise UsageError(f"{self._name}: {reply['error']}")
        return reply["text"]

    def turns(self, messages: list[dict[str, str]], waiting: bool) -> Iterator[tuple[str, bool]]:
        """The rendered conversation, split before and after each assistant turn: (text, is_response).

        Text after the token that ends a turn (ChatML: a line break) belongs to the next part; after the last turn it is
        dropped. An answer that later turns change (Qwen3 leaves out the reasoning of earlier ones) is not as it was
        written, so there it is no response but part of the context.
        """
        whole, done = self.render(messages, waiting), 0
        last = len(messages) - 1
        for i, message in enumerate(messages):
            if message["role"] == "assistant":
                prompt = self.render(messages[:i], True)
                written = whole if i == last and not waiting else self.render(messages[: i + 1], False)
                said, end, _ = self._beyond(prompt, written).partition(self.end)
                if not end:
                    raise UsageError(f"{self._name}: it does not end an assistant's turn with {self.end}")
                if whole.startswith(prompt + said + end):
                    yield whole[done : len(prompt)], False
                    yield said + end, True
                    done = len(prompt) + len(said + end)
        if waiting or not (messages and messages[last]["role"] == "assistant"):
            yield whole[done:], False

    def _beyond(self, start: str, text: str) -> str:
        if not text.startswith(start):
            raise UsageError(f"{self._name}: an answer changes the text before it; use template='alpaca'")
        return text[len(start) :]


class _RendererProcess:
    """The process that runs untrusted templates: started on first use, and restarted after one was killed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def ask(self, request: Mapping[str, Any]) -> dict[str, str]:
        with self._lock:
            try:
                process = self._started()
            except OSError as error:
                raise UsageError(f"cannot start a process for chat templates: {error}") from None
            assert process.stdin is not None
            assert process.stdout is not None
            clock = threading.Timer(WALL_SECONDS, process.kill)
            clock.start()
            try:
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except OSError:  # it has exited
                line = b""
            finally:
                clock.cancel()
            if line.endswith(b"\n"):
                result: dict[str, str] = json.loads(line)
                return result
            self.close()
            code = process.wait()
        # An unhandled timer ends the process with SIGPROF, our clock with SIGKILL.
        if code in (-getattr(signal, "SIGPROF", 0), -getattr(signal, "SIGKILL", 0)):
            return {"error": f"it takes more than {template_renderer.SECONDS:g} seconds"}
        return {"error": "it needs too much memory, or nests too deeply"}

    def _started(self) -> subprocess.Popen[bytes]:
        process = self._process
        if process is None or self._owner != os.getpid() or process.poll() is not None:
            command = [sys.executable, "-P", template_renderer.__file__]
            process = self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            self._owner = os.getpid()
        return process

    def close(self) -> None:
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()  # end of input: the process exits
                except OSError:
                    continue
        process.wait()


_process = _RendererProcess()
atexit.register(_process.close)


@cache
def _shipped() -> dict[str, str]:
    """Name -> source."""
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(TEMPLATES.glob("*.jinja"))}


def _source_of(template: str | Path) -> tuple[str, str]:
    """(its name in errors, Jinja source)."""
    name = str(template)
    if isinstance(template, str) and ("{{" in template or "{%" in template):
        return "given as text", template
    if name in _shipped():
        return name, _shipped()[name]
    file = Path(template)
    try:
        found = file.is_file()
    except (OSError, ValueError):  # too long for a name, or contains a NUL
        found = False
    if not found:
        raise UsageError(f"chat template {name[:200]}: neither a file nor one of {', '.join(_shipped())}")
    if file.stat().st_size > 4 * LONGEST_TEMPLATE:
        raise UsageError(f"chat template {name}: longer than {LONGEST_TEMPLATE:,} characters")
    return name, whole_text(file)
