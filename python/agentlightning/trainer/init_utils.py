"""Components from specs: an instance, a class, a factory, a name, or a dict with a type and arguments."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, overload

T = TypeVar("T")


def load_class(full_class_name: str) -> type[Any]:
    """The class of that import path."""
    module_name, class_name = full_class_name.rsplit(".", 1)
    cls: type[Any] = getattr(importlib.import_module(module_name), class_name)
    return cls


def instantiate_component(
    cls: type[T],
    provided_kwargs: Mapping[str, Any] | None = None,
    optional_defaults: Mapping[str, Callable[[], Any] | Any] | None = None,
) -> T:
    """Makes an instance.

    Args:
        cls: The class.
        provided_kwargs: Arguments of its constructor.
        optional_defaults: Further ones, for parameters that the constructor has by name and that are not
            provided. Callables are called for their value.
    """
    kwargs = dict(provided_kwargs or {})
    parameters = inspect.signature(cls.__init__).parameters
    for name, default in (optional_defaults or {}).items():
        if name in parameters and name not in kwargs:
            kwargs[name] = default() if callable(default) else default
    return cls(**kwargs)


def instantiate_from_spec(
    spec: str | Mapping[str, Any],
    *,
    spec_name: str,
    optional_defaults: Mapping[str, Callable[[], Any] | Any] | None = None,
    dict_requires_type: bool = True,
    dict_default_cls: type[Any] | None = None,
    registry: Mapping[str, str] | None = None,
) -> Any:
    """Makes a component of a name, or of a dict.

    Args:
        spec: An import path or a registered name; or a dict with either under `type` (or a registered name
            under `name`), and constructor arguments.
        spec_name: What to call it in errors.
        optional_defaults: See `instantiate_component`.
        dict_requires_type: Whether a dict must say its type.
        dict_default_cls: The type of a dict that does not.
        registry: Registered names.

    Raises:
        ValueError: for a dict without a type.
        TypeError: for another kind of spec.
    """
    registry = registry or {}
    if isinstance(spec, str):
        return instantiate_component(load_class(registry.get(spec, spec)), None, optional_defaults)
    if not isinstance(spec, Mapping):
        raise TypeError(f"{spec_name} spec must be a string or dict, got {type(spec)}.")
    kwargs = dict(spec)
    type_name = kwargs.pop("type", None)
    if type_name is None and kwargs.get("name") in registry:
        type_name = kwargs.pop("name")
    if type_name is not None:
        cls = load_class(registry.get(type_name, type_name)) if isinstance(type_name, str) else type_name
    elif dict_default_cls is not None and not dict_requires_type:
        cls = dict_default_cls
    else:
        raise ValueError(f"{spec_name} dict must have a 'type' key with the class full name")
    return instantiate_component(cls, kwargs, optional_defaults)


@overload
def build_component(
    spec: Any,
    *,
    expected_type: type[T],
    spec_name: str,
    default_factory: Callable[[], T] | None = ...,
    allow_none: bool,
    optional_defaults: Mapping[str, Callable[[], Any] | Any] | None = ...,
    dict_requires_type: bool = ...,
    dict_default_cls: type[T] | None = ...,
    type_error_fmt: str | None = ...,
    invalid_spec_error_fmt: str | None = ...,
    registry: Mapping[str, str] | None = ...,
) -> T | None: ...


@overload
def build_component(
    spec: Any,
    *,
    expected_type: type[T],
    spec_name: str,
    default_factory: Callable[[], T] | None = ...,
    optional_defaults: Mapping[str, Callable[[], Any] | Any] | None = ...,
    dict_requires_type: bool = ...,
    dict_default_cls: type[T] | None = ...,
    type_error_fmt: str | None = ...,
    invalid_spec_error_fmt: str | None = ...,
    registry: Mapping[str, str] | None = ...,
) -> T: ...


def build_component(
    spec: Any,
    *,
    expected_type: type[T],
    spec_name: str,
    default_factory: Callable[[], T] | None = None,
    allow_none: bool = False,
    optional_defaults: Mapping[str, Callable[[], Any] | Any] | None = None,
    dict_requires_type: bool = True,
    dict_default_cls: type[T] | None = None,
    type_error_fmt: str | None = None,
    invalid_spec_error_fmt: str | None = None,
    registry: Mapping[str, str] | None = None,
) -> T | None:
    """Makes a component of whatever stands for one.

    Args:
        spec: An instance, which is taken as it is; None; a class or a factory; a string or dict, as
            `instantiate_from_spec` takes them.
        expected_type: What the component must be.
        spec_name: What to call it in errors.
        default_factory: Makes the component where the spec is None.
        allow_none: Whether None without a default factory means none.
        optional_defaults: See `instantiate_component`; not for factories and instances.
        dict_requires_type: See `instantiate_from_spec`.
        dict_default_cls: See `instantiate_from_spec`.
        type_error_fmt: The error for a product of the wrong type, with `{type_name}` and `{expected_type}`.
        invalid_spec_error_fmt: The error for a spec of no known kind, with `{actual_type}` and
            `{expected_type}`.
        registry: Registered names.

    Raises:
        ValueError: for a spec that stands for nothing.
        TypeError: if the product is not what it must be.
    """
    if isinstance(spec, expected_type):
        return spec

    def checked(component: Any) -> T:
        if not isinstance(component, expected_type):
            message = (
                type_error_fmt
                or "{spec_name} factory returned {type_name}, which is not a {expected_type} subclass."
            )
            raise TypeError(
                message.format(
                    spec_name=spec_name, type_name=type(component), expected_type=expected_type.__name__
                )
            )
        return component

    if spec is None:
        if default_factory is not None:
            return checked(default_factory())
        if allow_none:
            return None
        raise ValueError(f"{spec_name} cannot be None.")
    if inspect.isclass(spec) and issubclass(spec, expected_type):
        return checked(instantiate_component(spec, None, optional_defaults))
    if not inspect.isclass(spec) and callable(spec):
        return checked(spec())
    if isinstance(spec, (str, Mapping)):
        return checked(
            instantiate_from_spec(
                spec,
                spec_name=spec_name,
                optional_defaults=optional_defaults,
                dict_requires_type=dict_requires_type,
                dict_default_cls=dict_default_cls,
                registry=registry,
            )
        )
    message = invalid_spec_error_fmt or (
        "Invalid {spec_name} type: {actual_type}. Expected {expected_type}, str, dict, or None."
    )
    raise ValueError(
        message.format(spec_name=spec_name, actual_type=type(spec), expected_type=expected_type.__name__)
    )
