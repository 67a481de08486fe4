"""Logging of the package and of programs that use it."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["configure_logger", "setup", "setup_logging", "setup_module", "setup_module_logging"]

_BASE = "agentlightning"
_FORMAT = "%(asctime)s [%(levelname)s] (Process-%(process)d %(name)s)   %(message)s"
_DATE_FORMAT = "%H:%M:%S"
_OURS = "_agentlightning_handler"
_WIDTH_WITHOUT_TERMINAL = 200


def setup(
    level: int | str = "INFO",
    *,
    console: bool = True,
    color: bool | Mapping[str, Any] = True,
    propagate: bool = False,
    disable_existing_loggers: bool = False,
    capture_warnings: bool = False,
    submodule_levels: Mapping[str, int | str] | None = None,
    extra_handlers: Iterable[logging.Handler] | None = None,
    formatter: logging.Formatter | None = None,
    apply_to: Iterable[str] | None = None,
    files: str | Path | Mapping[str, str | Path] | None = None,
) -> None:
    """Sets up the package's logger. Calling it again replaces the console handler and adds nothing twice.

    `color` takes a `rich` handler where rich is installed (a mapping goes to it as keyword arguments);
    `submodule_levels` are levels of single loggers; `formatter` is for handlers without one; `apply_to` names
    further loggers that get the same handlers and level; `files` is a log file, or one for each logger named.
    """
    logger = setup_module(
        level,
        name=_BASE,
        console=console,
        color=color,
        propagate=propagate,
        disable_existing_loggers=disable_existing_loggers,
    )
    if capture_warnings:
        logging.captureWarnings(True)
    for name, submodule_level in (submodule_levels or {}).items():
        submodule = logging.getLogger(name)
        submodule.setLevel(_level(submodule_level))
        if submodule.level < logger.level:
            logger.warning(
                "Logger %s is more verbose than %s; its handlers may drop what is below their own level.",
                name,
                _BASE,
            )
    for handler in extra_handlers or ():
        if handler not in logger.handlers:
            logger.addHandler(handler)
    if isinstance(files, (str, Path)):
        _add_file(logger, files)
    elif files is not None:
        for name, path in files.items():
            _add_file(logging.getLogger(name), path)
    if formatter is not None:
        for handler in logger.handlers:
            if handler.formatter is None:
                handler.setFormatter(formatter)
    for name in apply_to or ():
        other = logging.getLogger(name)
        other.setLevel(logger.level)
        other.propagate = False
        for handler in list(other.handlers):
            if getattr(handler, _OURS, False) and handler not in logger.handlers:
                other.removeHandler(handler)
        for handler in logger.handlers:
            if handler not in other.handlers:
                other.addHandler(handler)


def setup_module(
    level: int | str = "INFO",
    *,
    name: str = _BASE,
    console: bool = True,
    color: bool | Mapping[str, Any] = True,
    propagate: bool = False,
    disable_existing_loggers: bool = False,
) -> logging.Logger:
    """Sets up one logger and returns it. `ValueError` for a level that does not exist."""
    logger = logging.getLogger(name)
    logger.setLevel(_level(level))
    logger.propagate = propagate
    if disable_existing_loggers:
        for other in list(logging.root.manager.loggerDict.values()):
            if isinstance(other, logging.Logger) and other is not logger:
                other.disabled = True
    for handler in list(logger.handlers):
        if getattr(handler, _OURS, False):
            logger.removeHandler(handler)
            handler.close()
    if console:
        handler = _console_handler(color)
        setattr(handler, _OURS, True)
        logger.addHandler(handler)
    return logger


def configure_logger(level: int = logging.INFO, name: str = _BASE) -> logging.Logger:
    """Sets up one logger. Deprecated: use `setup_logging` or `setup_module_logging`."""
    warnings.warn(
        "configure_logger is deprecated: use setup_logging or setup_module_logging",
        DeprecationWarning,
        stacklevel=2,
    )
    return setup_module(level, name=name)


setup_logging = setup
setup_module_logging = setup_module


def _level(level: int | str) -> int:
    if isinstance(level, int):
        return level
    number = logging.getLevelName(level.upper())
    if not isinstance(number, int):
        raise ValueError(f"unknown log level {level!r}: use DEBUG, INFO, WARNING, ERROR or CRITICAL")
    return number


def _plain_formatter() -> logging.Formatter:
    return logging.Formatter(_FORMAT, _DATE_FORMAT)


def _console_handler(color: bool | Mapping[str, Any]) -> logging.Handler:
    if color is not False:
        try:
            from rich.console import Console
            from rich.logging import RichHandler
        except ImportError:
            pass
        else:
            options: dict[str, Any] = {
                "rich_tracebacks": False,
                "markup": False,
                "show_time": True,
                "show_path": True,
            }
            if isinstance(color, Mapping):
                options = dict(color)
            if "console" not in options and not sys.stdout.isatty():
                options["console"] = Console(width=_WIDTH_WITHOUT_TERMINAL)
            rich_handler: logging.Handler = RichHandler(**options)
            return rich_handler
    handler = logging.StreamHandler()
    handler.setFormatter(_plain_formatter())
    return handler


def _add_file(logger: logging.Logger, path: str | Path) -> None:
    target = Path(path).absolute()
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler) and Path(handler.baseFilename) == target:
            return
    target.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(target)
    handler.setLevel(logger.getEffectiveLevel())
    handler.setFormatter(_plain_formatter())
    logger.addHandler(handler)
