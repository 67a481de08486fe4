"""Random ids."""

from __future__ import annotations

import secrets

__all__ = ["generate_id"]


def generate_id(length: int) -> str:
    """`length` random hexadecimal digits."""
    return secrets.token_hex((length + 1) // 2)[:length]
