"""`wukong studio`: the web application where people label, chat with models, and compare them in an arena.

In:  a label store (made when absent), a run's models and, for admins, its responses.
Out: judgments in the store; its pages export them for `wukong reward`.

    wukong studio --run runs/kitchen

Prints an address with an admin's invitation, and opens it. It listens on the loopback only, unless --host says
otherwise; then the environment variable WUKONG_ADMIN_SECRET must hold a secret, which every new admin needs.
"""

from __future__ import annotations

import os
import webbrowser
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field

from wukong.console import say
from wukong.errors import UsageError
from wukong.options import Options
from wukong.serve.listen import address_of, is_loopback, listen


class StudioOptions(Options):
    """Serve the studio: people label answers in their browsers."""

    run: Path | None = None
    """The run whose models can be talked to, and whose responses can be labelled; admins see the runs beside it too."""
    models: list[str] = []
    """More models for chat and arena: directories or hub ids; NAME=PATH gives one a name, else it is its last part."""
    db: str = ""
    """The label store: an SQLite file or postgresql://user@host/name; studio.db in the run's directory, or here."""
    host: str = "127.0.0.1"
    """The address to listen on. Beyond the loopback, WUKONG_ADMIN_SECRET must be set in the environment."""
    port: int = Field(7860, ge=0, le=65535)
    """The port; 0 takes a free one."""
    public_url: str | None = None
    """The address people use, if the studio is behind a proxy, as in https://label.example.org."""
    open_browser: bool = True
    """Open the address in a browser."""


def run(options: StudioOptions) -> None:
    """Serves until Ctrl-C. Raises UsageError for a store, run or address that cannot be used."""
    try:
        import uvicorn

        from wukong.feedback.store.database import Store
        from wukong.feedback.store.people import invite, needing_renewal
        from wukong.serve.connections import http_protocol
        from wukong.web.app import create_app
        from wukong.web.state import LOCAL_NAMES, SECRET, Settings
    except ImportError as error:
        raise UsageError(f"the studio needs {error.name}: pip install 'wukong-rlhf[studio]'") from None
    if options.run is not None and not options.run.is_dir():
        raise UsageError(f"{options.run}: no such directory")
    secret = os.environ.get(SECRET) or None
    local = is_loopback(options.host)
    if not local and len(secret or "") < 16:
        raise UsageError(
            f"--host {options.host} lets other machines in: set {SECRET} to a secret of at least 16 characters first"
        )
    hosts: tuple[str, ...] | None = LOCAL_NAMES if local else None
    public = urlsplit(options.public_url or "")
    if options.public_url:
        if public.scheme not in ("http", "https") or not public.hostname or public.path.strip("/"):
            raise UsageError("--public-url must be an address without a path, as in https://label.example.org")
        hosts = (*LOCAL_NAMES, public.hostname)
    listener = listen(options.host, options.port)
    store = Store(options.db or (options.run or Path()) / "studio.db")
    settings = Settings(
        run_dir=options.run,
        models=_more_models(options),
        hosts=hosts,
        admin_secret=secret,
        secure=public.scheme == "https",
    )
    app = create_app(store, settings)
    with store.write() as session:
        token = invite(session, "admin", note="printed at start", seconds=86400)
        old = needing_renewal(session)
    own = address_of(listener).replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//127.0.0.1:")
    address = f"{(options.public_url or own).rstrip('/')}/invite/{token}"
    say("studio: labels are kept in {store}", store=store)
    if old:
        say("studio: {old} waiting invitations were made by an older version, and their links no longer work;", old=old)
        say("studio: the page of people has a button that makes a new link for each")
    if not local:
        say(
            "studio: WARNING: {host} lets other machines in, and plain HTTP lets others listen; put a proxy",
            host=options.host,
        )
        say("studio: with HTTPS before it (docs/tools/studio.md). Admins need the secret besides their link.")
    say("studio: open this link to sign in as an admin; it works once, for a day. Ctrl-C stops the server.")
    print(address, flush=True)
    if options.open_browser:
        webbrowser.open(address)
    config = uvicorn.Config(
        app, http=http_protocol(), log_level="warning", proxy_headers=bool(options.public_url),
        forwarded_allow_ips="127.0.0.1,::1", server_header=False, timeout_graceful_shutdown=5,
    )  # fmt: skip
    try:
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        app.state.studio.models.close()
        store.close()


def _more_models(options: StudioOptions) -> dict[str, str]:
    """--models by name. Raises UsageError for a name that a model of the run has."""
    if not options.models:
        return {}
    from wukong.chat import named_sources
    from wukong.run_models import models_in

    named = named_sources(options.models)
    if taken := [path.name for path in models_in(options.run) if path.name in named]:
        raise UsageError(f"--models: the run has a model {taken[0]!r} already; write NAME=PATH")
    return named
