"""What tests must find in a page before they can send it back."""

import re

from fastapi.testclient import TestClient


def csrf_of(client: TestClient, path: str = "/login") -> str:
    """The CSRF token of a page."""
    found = re.search(r'<meta name="csrf" content="(\w+)">', client.get(path).text)
    assert found
    return found[1]
