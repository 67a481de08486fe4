"""`lightning_cli`: command-line flags and config files for classes, by the types of their constructors."""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import sys
import types
import typing
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, overload

__all__ = ["lightning_cli"]

T = TypeVar("T")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")

_TRUE = frozenset({"yes", "true", "t", "y", "1"})
_FALSE = frozenset({"no", "false", "f", "n", "0"})
_NONE = frozenset({"none", "null", "~", "nil"})


@overload
def lightning_cli(cls: type[T], /) -> T: ...
@overload
def lightning_cli(cls1: type[T1], cls2: type[T2], /) -> tuple[T1, T2]: ...
@overload
def lightning_cli(cls1: type[T1], cls2: type[T2], cls3: type[T3], /) -> tuple[T1, T2, T3]: ...
@overload
def lightning_cli(*classes: type[Any]) -> Any: ...
def lightning_cli(*classes: type[Any]) -> Any:
    """Makes an instance of each class, with what the command line says.

    Every parameter of a constructor becomes a flag `--{class}.{parameter}`, with the class in lower case and
    dashes for underscores: `--trainer.n-runners 4`. `--config FILE` reads them from a file instead, in JSON,
    TOML (from Python 3.11 on) or, with PyYAML, YAML: `{"trainer": {"n_runners": 4}}`. A flag wins over the
    file, and the file over the default.

    A flag's text becomes what the parameter's annotation asks for:

    - booleans: yes, true, t, y, 1 or no, false, f, n, 0; the flag alone means yes;
    - what may be None: none, null, ~ or nil stand for it;
    - lists, sets and tuples of any length: several values, `--agent.tools search calculator`;
    - `Literal` and enums: one of their values, or a name of the enum;
    - dicts, models and other structures: JSON;
    - of several types: the first that takes the text, strings last;
    - anything else, and what has no annotation: the text, or, where it is a JSON object or array, what that
      says. So a component of the `Trainer` is an import path, or `{"type": "...", ...}`.

    Parameters `*args` and `**kwargs` have no flags.

    Args:
        classes: The classes.

    Returns:
        The instance of a single class, a tuple of those of several, and `()` of none.

    Raises:
        ValueError: for two classes of the same name.
        SystemExit: with code 2, and a message that names the flag, for a command line that makes no sense;
            with code 0 for `--help`.
    """
    if not classes:
        return ()
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument(
        "--config", metavar="FILE", default=argparse.SUPPRESS, help="a file of flags: JSON, TOML or YAML"
    )
    sections: dict[str, list[_Parameter]] = {}
    for cls in classes:
        name = cls.__name__.lower()
        if name in sections:
            raise ValueError(f"two classes share the name {name!r}, so their flags can't be told apart")
        sections[name] = _parameters(cls)
        group = parser.add_argument_group(cls.__name__, _first_paragraph(cls))
        for parameter in sections[name]:
            parameter.add_to(group)
    given = vars(parser.parse_args())
    from_file = _read_config(parser, given.get("config"), sections)
    instances = []
    for cls in classes:
        name = cls.__name__.lower()
        arguments: dict[str, Any] = {}
        for parameter in sections[name]:
            if parameter.dest in given:
                arguments[parameter.name] = given[parameter.dest]
            elif parameter.name in from_file[name]:
                try:
                    arguments[parameter.name] = parameter.read(from_file[name][parameter.name])
                except ValueError as error:
                    parser.error(f"config {name}.{parameter.name}: {error}")
            elif parameter.required:
                parser.error(f"{parameter.flag} is required, or {name}.{parameter.name} in --config")
            elif parameter.default is inspect.Parameter.empty:
                arguments[parameter.name] = None
        instances.append(cls(**arguments))
    return instances[0] if len(instances) == 1 else tuple(instances)


class _Parameter:
    """A parameter of a constructor, and its flag."""

    def __init__(self, section: str, name: str, hint: Any, default: Any, text: str) -> None:
        self.name = name
        self.flag = f"--{section}.{name.replace('_', '-')}"
        self.dest = f"{section}_{name}"
        self.hint = hint
        self.default = default
        self.text = text
        # As in 0.3, what may be None is None where nothing is said.
        self.required = default is inspect.Parameter.empty and not _optional(hint)

    def add_to(self, group: argparse._ArgumentGroup) -> None:
        """Adds the flag to a command line."""
        item = _item_of(self.hint)
        kind = self.hint if item is None else item
        shown = self.text
        if self.required:
            shown += " (required)"
        elif self.default not in (inspect.Parameter.empty, None):
            shown += f" (default: {self.default!r})"
        options: dict[str, Any] = {
            "dest": self.dest,
            "metavar": _metavar(kind),
            "help": shown.strip().replace("%", "%%") or " ",
            "default": argparse.SUPPRESS,
            "type": _converter(kind),
        }
        if item is not None:
            options |= {"nargs": "*", "action": _Collect, "const": self.hint}
        elif _plain(self.hint) is bool:
            options |= {"nargs": "?", "const": True}
        group.add_argument(self.flag, **options)

    def read(self, value: Any) -> Any:
        """What a config file says, as the constructor wants it."""
        if isinstance(value, str) and _plain(self.hint) is not str:
            return _convert(self.hint, value)
        return _validate(self.hint, value)


class _Collect(argparse.Action):
    """Keeps several values in the collection that the annotation asks for."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """See `argparse.Action`."""
        if len(values) == 1 and values[0] is None and _optional(self.const):
            setattr(namespace, self.dest, None)
            return
        origin = typing.get_origin(_plain(self.const)) or _plain(self.const)
        setattr(namespace, self.dest, origin(values) if origin in (set, frozenset, tuple) else list(values))


def _parameters(cls: type[Any]) -> list[_Parameter]:
    constructor: Any = cls.__init__
    try:
        signature = inspect.signature(cls)
    except ValueError:
        return []
    texts = _documented(cls)
    found = []
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            continue
        hint = _resolved(parameter.annotation, constructor, cls)
        found.append(
            _Parameter(
                cls.__name__.lower(),
                parameter.name,
                hint,
                parameter.default,
                texts.get(parameter.name, ""),
            )
        )
    return found


def _resolved(annotation: Any, constructor: Any, cls: type[Any]) -> Any:
    """An annotation as a type; `Any` for what can't be looked up, such as what is imported for type checkers
    only and is not one of ours."""
    if annotation is inspect.Parameter.empty:
        return Any
    if not isinstance(annotation, str):
        return annotation
    constructor = inspect.unwrap(constructor)
    names: dict[str, Any] = dict(vars(importlib.import_module("agentlightning.types")))
    names |= getattr(constructor, "__globals__", None) or vars(sys.modules[cls.__module__])
    try:
        return eval(annotation, {**vars(typing), **names})
    except Exception:
        return Any


# From types to values and back


def _members(hint: Any) -> tuple[Any, ...]:
    """The types of a union, in both spellings; of any other, itself."""
    if typing.get_origin(hint) is typing.Annotated:
        return _members(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (Union, types.UnionType):
        return tuple(member for one in typing.get_args(hint) for member in _members(one))
    return (hint,)


def _optional(hint: Any) -> bool:
    return type(None) in _members(hint)


def _plain(hint: Any) -> Any:
    """The type itself where only None may stand in for it."""
    members = [member for member in _members(hint) if member is not type(None)]
    return members[0] if len(members) == 1 else hint


def _item_of(hint: Any) -> Any:
    """The type of the items where a flag takes several values; None where it takes one."""
    plain = _plain(hint)
    origin, arguments = typing.get_origin(plain) or plain, typing.get_args(plain)
    if origin not in (list, set, frozenset, tuple, Sequence):
        return None
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        # Of a fixed length and, as a rule, of several types.
        return None
    item = arguments[0] if arguments else Any
    return Union[item, None] if _optional(hint) else item


def _converter(hint: Any) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            return _convert(hint, text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def _convert(hint: Any, text: str) -> Any:
    """The value that a flag's text stands for; `ValueError` if it stands for none."""
    members = _members(hint)
    if type(None) in members and text.strip().lower() in _NONE:
        return None
    problems = []
    # Any text is a string, so that strings are what is left when nothing else fits.
    for member in sorted(members, key=lambda member: member is str):
        if member is type(None):
            continue
        try:
            return _convert_one(member, text)
        except ValueError as error:
            problems.append(str(error))
    raise ValueError("; ".join(problems))


def _convert_one(hint: Any, text: str) -> Any:
    origin = typing.get_origin(hint) or hint
    if origin is Any or isinstance(origin, TypeVar) or origin is object:
        return _structure(text)
    if origin is Literal:
        return _one_of({str(value): value for value in typing.get_args(hint)}, text)
    if not isinstance(origin, type):
        return _structure(text)
    if origin is bool:
        word = text.strip().lower()
        if word in _TRUE or word in _FALSE:
            return word in _TRUE
        raise ValueError(f"{text!r} is neither yes (true, t, y, 1) nor no (false, f, n, 0)")
    if origin is str:
        return text
    if issubclass(origin, Enum):
        by_value = {str(member.value): member for member in origin}
        return _one_of({**origin.__members__, **by_value}, text)
    if origin in (int, float):
        try:
            return origin(text)
        except ValueError:
            raise ValueError(f"{text!r} is no {'integer' if origin is int else 'number'}") from None
    if issubclass(origin, Path):
        return origin(text)
    return _validate(hint, _json(text))


def _one_of(values: dict[str, Any], text: str) -> Any:
    if text in values:
        return values[text]
    raise ValueError(f"{text!r} is none of {', '.join(values)}")


def _structure(text: str) -> Any:
    """A JSON object or array where the text begins like one, else the text."""
    return _json(text) if text.lstrip().startswith(("{", "[")) else text


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        # A word for something that JSON has no words for may still be a string that the type takes.
        if text.lstrip().startswith(("{", "[")):
            raise ValueError(f"{text!r} is no JSON: {error}") from None
        return text


def _validate(hint: Any, value: Any) -> Any:
    """A value as the type wants it, by pydantic's rules; an instance of it where pydantic knows none."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError
    from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

    try:
        adapter: TypeAdapter[Any] = TypeAdapter(hint)
    except (PydanticSchemaGenerationError, PydanticUserError):
        adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(map(str, problem["loc"]))
        raise ValueError(f"{place}: {problem['msg']}" if place else problem["msg"]) from None


# Files


def _read_config(
    parser: argparse.ArgumentParser, path: str | None, sections: dict[str, list[_Parameter]]
) -> dict[str, dict[str, Any]]:
    """What a file says of each class."""
    found: dict[str, dict[str, Any]] = {name: {} for name in sections}
    if path is None:
        return found
    try:
        content = _load(Path(path))
    except (OSError, ValueError, ImportError) as error:
        parser.error(f"argument --config: {path}: {error}")
    if not isinstance(content, dict):
        parser.error(
            f"argument --config: {path}: must be an object with a key for each of {', '.join(sections)}"
        )
    for name, section in content.items():
        if name not in sections:
            parser.error(f"argument --config: {path}: {name!r} is none of {', '.join(sections)}")
        if not isinstance(section, dict):
            parser.error(f"argument --config: {path}: {name} must be an object")
        known = [parameter.name for parameter in sections[name]]
        for key, value in section.items():
            key = key.replace("-", "_")
            if key not in known:
                parser.error(f"argument --config: {path}: {name}.{key} is none of {', '.join(known)}")
            found[name][key] = value
    return found


def _load(path: Path) -> Any:
    match path.suffix.lower():
        case ".json":
            return json.loads(path.read_text("utf-8"))
        case ".toml":
            try:
                import tomllib  # type: ignore[import-not-found, unused-ignore]
            except ImportError:
                raise ValueError("TOML needs Python 3.11: write JSON") from None
            return tomllib.loads(path.read_text("utf-8"))
        case ".yaml" | ".yml":
            try:
                import yaml  # type: ignore[import-untyped, unused-ignore]
            except ImportError:
                raise ValueError("YAML needs PyYAML: install it, or write JSON") from None
            try:
                return yaml.safe_load(path.read_text("utf-8"))
            except yaml.YAMLError as error:
                raise ValueError(" ".join(str(error).split())) from None
        case suffix:
            raise ValueError(f"the name must end with .json, .toml or .yaml, not {suffix or 'nothing'}")


# What --help says


def _metavar(hint: Any) -> str:
    names = []
    for member in _members(hint):
        origin = typing.get_origin(member) or member
        if origin is type(None):
            names.append("none")
        elif origin is Literal:
            names += [str(value) for value in typing.get_args(member)]
        elif isinstance(origin, type) and issubclass(origin, Enum):
            names += [str(one.value) for one in origin]
        elif origin is bool:
            names.append("yes|no")
        elif origin in (str, int, float):
            names.append(origin.__name__)
        elif isinstance(origin, type) and issubclass(origin, Path):
            names.append("path")
        else:
            names.append("value" if not isinstance(origin, type) or origin is object else "json")
    return "|".join(dict.fromkeys(names))


def _first_paragraph(cls: type[Any]) -> str | None:
    text = inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0]
    return text.replace("%", "%%") or None


def _documented(cls: type[Any]) -> dict[str, str]:
    """What the docstrings of a class and its constructor say of each parameter, in Google's style."""
    texts: dict[str, str] = {}
    for doc in (cls.__doc__, cls.__init__.__doc__):
        _, found, section = inspect.cleandoc(doc or "").partition("\nArgs:\n")
        if not found:
            continue
        name = ""
        for line in section.splitlines():
            if line and not line.startswith(" "):
                break
            if line.startswith("    ") and not line.startswith("     ") and ":" in line:
                name, _, text = line.strip().partition(":")
                name = name.partition(" ")[0]
                texts[name] = text.strip()
            elif name and line.strip():
                texts[name] += f" {line.strip()}"
    return texts
