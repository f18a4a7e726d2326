"""`wukong serve`: models behind an OpenAI-compatible API.

In:  model directories or hub ids.
Out: /v1/models, /v1/chat/completions and /v1/completions for any OpenAI client; /health and /metrics.

    wukong serve runs/mine/policy runs/mine/sft --port 8000

Requests of all clients are batched through one sampler: a request joins those that are being written at their next
token, and its answer depends on prompt, model, options and seed alone.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

from pydantic import Field

from wukong.chat import named_sources
from wukong.console import say
from wukong.errors import Text, UsageError
from wukong.options import Options
from wukong.serve.listen import address_of, is_loopback, listen
from wukong.training.compute import Precision

KEY_VARIABLE = "WUKONG_API_KEY"


class ServeOptions(Options):
    """Serve models over an OpenAI-compatible HTTP API."""

    models: list[str] = Field(min_length=1)
    """Directories or hub ids; NAME=PATH gives one the name that clients use, else it is its last part."""
    host: str = "127.0.0.1"
    """The address to listen at. Any but this machine's own needs an API key."""
    port: int = Field(8000, ge=0, le=65535)
    """The port; 0 takes a free one."""
    api_key: str | None = Field(None, min_length=8)
    """What clients must send as their API key; better in the environment variable WUKONG_API_KEY, which others on
    this machine cannot see."""
    max_new_tokens: int = Field(128, ge=1)
    """The length of an answer for which a request names none; the rest of the context if that is shorter."""
    max_batch: int = Field(32, ge=1)
    """Answers written at the same time, all models together."""
    max_waiting: int = Field(256, ge=0)
    """Answers that may wait for a place; further requests get status 429."""
    max_body: int = Field(1 << 20, ge=1)
    """Bytes of a request; a larger one gets status 413."""
    grace_seconds: int = Field(30, ge=0)
    """On Ctrl-C or SIGTERM, how long answers that are being written may take to finish."""
    precision: Precision = "auto"
    """bfloat16 where it is faster, or as named."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps (an Apple GPU)."""


def run(options: ServeOptions) -> None:
    """Serves until Ctrl-C or SIGTERM. Raises UsageError for a model, address or key that cannot be used."""
    try:
        import uvicorn

        from wukong.serve.app import Access, create_app
        from wukong.serve.connections import http_protocol
        from wukong.serve.service import Service, load_model
    except ImportError as error:
        raise UsageError(f"serving needs {error.name}: pip install 'wukong-rlhf[serve]'") from None
    key = checked_key(options)
    listener = listen(options.host, options.port)  # first: that the port is taken should not be learnt after a minute
    with listener:
        sources = named_sources(options.models)
        models = {name: load_model(name, path, options.precision, options.device) for name, path in sources.items()}
        service = Service(
            models,
            max_batch=options.max_batch,
            max_waiting=options.max_waiting,
            max_new_tokens=options.max_new_tokens,
        )
        app = create_app(service, Access(key, options.max_body))
        note = Text("API key needed; Ctrl-C stops" if key else "Ctrl-C stops")
        say(
            "serving {models} at {address}/v1 ({note})",
            models=", ".join(models),
            address=address_of(listener),
            note=note,
        )
        for name, served in models.items():
            say("{name}: {sampling}, unless a request says otherwise", name=name, sampling=served.sampling.in_words())
        config = uvicorn.Config(
            app,
            http=http_protocol(),
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=options.grace_seconds,
            server_header=False,
        )

        class Server(uvicorn.Server):
            def handle_exit(self, sig: int, frame: FrameType | None) -> None:
                """A stop that was asked for and went well is no failure: uvicorn would raise the signal once more."""
                if self.should_exit and sig == signal.SIGINT:
                    self.force_exit = True
                self.should_exit = True

        Server(config).run(sockets=[listener])
    say("serve: stopped")


def checked_key(options: ServeOptions) -> str | None:
    """The API key, of the option or the environment.

    Raises UsageError where other machines could ask without one.
    """
    key = options.api_key or os.environ.get(KEY_VARIABLE) or None
    if key is None and not is_loopback(options.host):
        raise UsageError(
            f"--host {options.host} lets other machines in: set a key in {KEY_VARIABLE}, or with --api-key"
        )
    if key is not None and len(key) < 8:
        raise UsageError(f"{KEY_VARIABLE}: an API key has at least 8 characters")
    return key
