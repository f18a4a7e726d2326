"""The texts that templates of the studio, and scripts of the studio and the report, ask for: `t("Skip")`."""

from __future__ import annotations

import re
from pathlib import Path

_USE = re.compile(r"""\bt\(\s*(?:"((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)')""")


def used_in(path: Path) -> set[str]:
    """The texts that a template or script asks for."""
    return {(a or b).replace('\\"', '"') for a, b in _USE.findall(path.read_text(encoding="utf-8"))}
