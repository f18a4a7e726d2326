"""The application, put together."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles

import wukong
from wukong.feedback.store.database import Store
from wukong.feedback.store.people import signing_key
from wukong.report.glass import SHARED
from wukong.web.guard import Guard
from wukong.web.models import Models
from wukong.web.rendering import add_error_handlers
from wukong.web.routes import (
    arena,
    chat,
    glass,
    labelling,
    new_tasks,
    people,
    projects,
    results,
    runs,
    sign_in,
    tasks,
    tokens,
)
from wukong.web.state import Settings, State

MODULES = (sign_in, labelling, projects, new_tasks, tasks, people, chat, arena, runs, glass, results, tokens)


def create_app(store: Store, settings: Settings | None = None) -> FastAPI:
    """The studio over a store.

    Args:
        store: an open store; the caller that opened it closes it.
        settings: how it is served; by default on the loopback, without a run.
    """
    settings = settings or Settings()
    app = FastAPI(
        title="Wukong studio",
        version=wukong.__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
        telemetry={"tracing": False, "metrics": False, "logs": False},  # it looks for a collector in every request
    )
    with store.write() as session:
        key = signing_key(session)
    state = State(store, settings, key, Models(settings.run_dir, settings.models))
    app.state.studio = state
    for module in MODULES:
        for router in module.ROUTERS:
            app.include_router(router)
    app.mount("/static/shared", StaticFiles(directory=SHARED), name="shared")
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"), name="static")
    app.add_middleware(Guard, settings=settings, limiter=state.limiter)
    add_error_handlers(app)
    return app
