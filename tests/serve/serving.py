"""What the tests of the server share."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import uvicorn

from wukong.serve.app import Access, create_app
from wukong.serve.connections import http_protocol
from wukong.serve.service import Service

CONTEXT = 96


@contextlib.contextmanager
def served(service: Service, access: Access | None = None) -> Iterator[str]:
    """The address of a running server."""
    config = uvicorn.Config(create_app(service, access), http=http_protocol(), log_level="error")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=300)
    assert not thread.is_alive()


def until(condition: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def value(service: Service, name: str, **labels: str) -> float:
    """A metric's present value."""
    return service.metrics.registry.get_sample_value(name, labels) or 0.0
