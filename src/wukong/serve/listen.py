"""Where the server and the studio listen."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from urllib.parse import urlsplit

from wukong.errors import UsageError


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises UsageError where that is not possible."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()  # "::" is every address, of IPv4 too
        return socket.create_server((host, port), family=family, dualstack_ipv6=both)
    except UnicodeError:
        reason: str | None = "not an address"
    except OSError as error:
        # create_server repeats the address in its text; getaddrinfo's numbers are not the system's
        reason = os.strerror(error.errno) if error.errno in errno.errorcode and error.errno else error.strerror
    raise UsageError(f"cannot listen at {host}:{port}: {reason}; choose another --port")


def is_loopback(host: str) -> bool:
    """Whether a host name or address, with or without a port, refers to this machine only."""
    try:
        name = host
        if host.count(":") <= 1 or host.startswith("["):
            parts = urlsplit(f"//{host}")
            name = parts.hostname or "" if parts.port != -1 else ""  # reading an invalid port raises
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def address_of(listener: socket.socket) -> str:
    """The address of a listener, as in http://127.0.0.1:8000."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
