"""Wukong: a language model from raw text to a model that people prefer.

The names in `__all__` are the package's stable interface. They are imported on first use: torch takes seconds, and
`import wukong` should not.
"""

from typing import TYPE_CHECKING, Any

from wukong.errors import DataError, WukongError
from wukong.version import __version__ as __version__

if TYPE_CHECKING:
    from wukong.api import Policy, Reward, load_policy, load_reward
    from wukong.data import as_trl, read_comparisons, read_instructions, read_prompts, read_text
    from wukong.inspection import load_inspector
    from wukong.runner import run

__all__ = [
    "DataError",
    "Policy",
    "Reward",
    "WukongError",
    "as_trl",
    "load_inspector",
    "load_policy",
    "load_reward",
    "read_comparisons",
    "read_instructions",
    "read_prompts",
    "read_text",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'wukong' has no attribute {name!r}")
    from wukong.registry import public

    globals()[name] = value = public(name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
