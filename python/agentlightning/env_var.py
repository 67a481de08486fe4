"""Settings from the environment: an explicit value wins over the variable, the variable over the fallback."""

from __future__ import annotations

import os
from enum import Enum
from typing import overload

__all__ = [
    "LightningEnvVar",
    "resolve_bool_env_var",
    "resolve_int_env_var",
    "resolve_str_env_var",
]


class LightningEnvVar(Enum):
    """The variables that are read."""

    AGL_EMITTER_DEBUG = "AGL_EMITTER_DEBUG"
    """Boolean: whether span processors are listed in the log."""
    AGL_EMITTER_MAX_BYTES = "AGL_EMITTER_MAX_BYTES"
    """Integer: how many bytes the attributes of an emitted span may take."""
    AGL_MANAGED_STORE = "AGL_MANAGED_STORE"
    """Boolean: whether an execution strategy wraps the store itself."""
    AGL_CURRENT_ROLE = "AGL_CURRENT_ROLE"
    """`algorithm`, `runner` or `both`."""
    AGL_SERVER_HOST = "AGL_SERVER_HOST"
    AGL_SERVER_PORT = "AGL_SERVER_PORT"


_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


@overload
def resolve_bool_env_var(
    env_var: LightningEnvVar, override: bool | None = None, *, fallback: bool
) -> bool: ...
@overload
def resolve_bool_env_var(env_var: LightningEnvVar, override: bool, fallback: bool | None = None) -> bool: ...
@overload
def resolve_bool_env_var(
    env_var: LightningEnvVar, override: bool | None = None, fallback: bool | None = None
) -> bool | None: ...
def resolve_bool_env_var(
    env_var: LightningEnvVar, override: bool | None = None, fallback: bool | None = None
) -> bool | None:
    """A boolean; `ValueError` for a word that is none of 1, true, yes, on, 0, false, no, off."""
    if override is not None:
        return override
    text = os.getenv(env_var.value)
    if text is None:
        return fallback
    word = text.strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ValueError(f"{env_var.value} must be one of {sorted(_TRUE | _FALSE)}, not {text!r}")


@overload
def resolve_int_env_var(env_var: LightningEnvVar, override: int | None = None, *, fallback: int) -> int: ...
@overload
def resolve_int_env_var(env_var: LightningEnvVar, override: int, fallback: int | None = None) -> int: ...
@overload
def resolve_int_env_var(
    env_var: LightningEnvVar, override: int | None = None, fallback: int | None = None
) -> int | None: ...
def resolve_int_env_var(
    env_var: LightningEnvVar, override: int | None = None, fallback: int | None = None
) -> int | None:
    """An integer; `ValueError` for anything else."""
    if override is not None:
        return override
    text = os.getenv(env_var.value)
    if text is None:
        return fallback
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{env_var.value} must be an integer, not {text!r}") from None


@overload
def resolve_str_env_var(env_var: LightningEnvVar, override: str | None = None, *, fallback: str) -> str: ...
@overload
def resolve_str_env_var(env_var: LightningEnvVar, override: str, fallback: str | None = None) -> str: ...
@overload
def resolve_str_env_var(
    env_var: LightningEnvVar, override: str | None = None, fallback: str | None = None
) -> str | None: ...
def resolve_str_env_var(
    env_var: LightningEnvVar, override: str | None = None, fallback: str | None = None
) -> str | None:
    """A string."""
    if override is not None:
        return override
    return os.getenv(env_var.value, fallback)
