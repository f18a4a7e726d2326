"""Seeds derived from their purpose: no random state is carried from one step to the next."""

from __future__ import annotations

import hashlib

import numpy as np


def derived_seed(*parts: object) -> int:
    """A 63-bit seed from any parts, e.g. (seed, "shuffle", epoch): the same on every machine."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def permutation(n: int, *parts: object) -> np.ndarray:
    """A permutation of 0..n-1 that depends only on `parts`."""
    return np.random.Generator(np.random.Philox(derived_seed(*parts))).permutation(n)
