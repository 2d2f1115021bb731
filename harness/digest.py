"""A fingerprint in a few letters, for formats that have room for no more."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def digest_of(fingerprint: Mapping[str, Any]) -> str:
    """16 hexadecimal digits, equal where every field is: they tell that machines differ, not in what."""
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:16]
