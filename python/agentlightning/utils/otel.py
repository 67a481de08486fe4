"""Attributes of spans: nested structures to dotted keys and back, rewards, tags and links among them."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from agentlightning.env_var import LightningEnvVar, resolve_bool_env_var
from agentlightning.semconv import LightningSpanAttributes, LinkAttributes, LinkPydanticModel

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.trace import Tracer

    from agentlightning.types import Attributes, AttributeValue, SpanLike

__all__ = [
    "check_attributes_sanity",
    "extract_links_from_attributes",
    "extract_tags_from_attributes",
    "filter_and_unflatten_attributes",
    "filter_attributes",
    "flatten_attributes",
    "format_exception_attributes",
    "full_qualified_name",
    "get_span_processors",
    "get_tracer",
    "get_tracer_provider",
    "make_link_attributes",
    "make_tag_attributes",
    "query_linked_spans",
    "sanitize_attribute_value",
    "sanitize_attributes",
    "sanitize_list_attribute_sanity",
    "unflatten_attributes",
]

logger = logging.getLogger(__name__)

_PRIMITIVES = (str, bool, int, float)
# As deep as a store takes JSON.
_MAX_DEPTH = 64
_SpanT = TypeVar("_SpanT", bound="SpanLike")


def full_qualified_name(cls: type) -> str:
    """Module and name of a class; the name alone for a built-in one."""
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def flatten_attributes(nested: Any, *, expand_leaf_lists: bool = False) -> dict[str, Any]:
    """Turns nested dicts and lists into one dict with dotted keys.

    A list of primitives of one type stays one value, unless `expand_leaf_lists` or at the root. Empty dicts
    and lists vanish. `ValueError` for a key that is no string, and for what is nested too deeply to be read,
    because it contains itself, say.
    """
    flat: dict[str, Any] = {}

    def visit(value: Any, path: str, depth: int = 0) -> None:
        if depth > _MAX_DEPTH:
            raise ValueError(
                f"{path[:80]!r} is nested more than {_MAX_DEPTH} levels deep, or contains itself"
            )
        if isinstance(value, dict):
            for key, item in value.items():
                if not isinstance(key, str):
                    raise ValueError(f"keys must be strings, but found {key!r} under {path!r}")
                visit(item, f"{path}.{key}" if path else key, depth + 1)
        elif isinstance(value, list):
            if path and value and not expand_leaf_lists and _is_leaf_list(value, path):
                flat[path] = value
                return
            for index, item in enumerate(value):
                visit(item, f"{path}.{index}" if path else str(index), depth + 1)
        else:
            flat[path] = value

    visit(nested, "")
    return flat


def _is_leaf_list(values: list[Any], path: str) -> bool:
    if not all(isinstance(value, _PRIMITIVES) for value in values):
        return False
    if len({type(value) for value in values}) == 1:
        return True
    logger.warning("The list at %r contains mixed primitive types and is expanded by index.", path)
    return False


def unflatten_attributes(flat: Mapping[str, Any]) -> dict[str, Any] | list[Any]:
    """Turns dotted keys into nested dicts, and dicts whose keys are 0 to n-1 into lists.

    Where one key is a prefix of another, the longer one wins.
    """
    root: dict[str, Any] = {}
    for key, value in flat.items():
        *path, last = key.split(".")
        node = root
        for part in path:
            child = node.get(part)
            if not isinstance(child, _Node):
                child = node[part] = _Node()
            node = child
        if not isinstance(node.get(last), _Node):
            node[last] = value
    return cast("dict[str, Any] | list[Any]", _with_lists(root)) if root else {}


class _Node(dict[str, Any]):
    """A dict made by `unflatten_attributes`, told apart from one that was a value."""


def _with_lists(node: dict[str, Any]) -> Any:
    items = {key: _with_lists(value) if isinstance(value, _Node) else value for key, value in node.items()}
    try:
        return [items[str(index)] for index in range(len(items))]
    except KeyError:
        return items


def filter_attributes(attributes: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The attributes under `prefix`, and the one of that very name."""
    return {key: value for key, value in attributes.items() if key == prefix or key.startswith(f"{prefix}.")}


def filter_and_unflatten_attributes(attributes: Mapping[str, Any], prefix: str) -> dict[str, Any] | list[Any]:
    """The structure that the attributes under `prefix` stand for."""
    stripped: dict[str, Any] = {}
    for key, value in filter_attributes(attributes, prefix).items():
        if key == prefix:
            raise ValueError(f"attribute {prefix!r} has a value of its own, so it cannot hold a structure")
        stripped[key[len(prefix) + 1 :]] = value
    return unflatten_attributes(stripped)


def make_tag_attributes(tags: Sequence[str]) -> dict[str, Any]:
    """The attributes that stand for these tags."""
    return {f"{LightningSpanAttributes.TAG.value}.{index}": tag for index, tag in enumerate(tags)}


def extract_tags_from_attributes(attributes: Mapping[str, Any]) -> list[str]:
    """The tags among the attributes; `ValidationError` if they are not a list of strings."""
    from pydantic import TypeAdapter

    tags = filter_and_unflatten_attributes(attributes, LightningSpanAttributes.TAG.value) or []
    return TypeAdapter(list[str]).validate_python(tags)


def make_link_attributes(links: Mapping[str, str]) -> dict[str, Any]:
    """The attributes that stand for links to the spans which have these values under these keys."""
    attributes: dict[str, Any] = {}
    for index, (key, value) in enumerate(links.items()):
        if not isinstance(value, str):
            raise ValueError(f"the value of link {key!r} must be a string, not {type(value).__name__}")
        prefix = f"{LightningSpanAttributes.LINK.value}.{index}"
        attributes[f"{prefix}.{LinkAttributes.KEY_MATCH.value}"] = key
        attributes[f"{prefix}.{LinkAttributes.VALUE_MATCH.value}"] = value
    return attributes


def extract_links_from_attributes(attributes: Mapping[str, Any]) -> list[LinkPydanticModel]:
    """The links among the attributes; `ValidationError` if they are not well formed."""
    from pydantic import TypeAdapter

    links = filter_and_unflatten_attributes(attributes, LightningSpanAttributes.LINK.value) or []
    return TypeAdapter(list[LinkPydanticModel]).validate_python(links)


def query_linked_spans(spans: Sequence[_SpanT], links: Iterable[LinkPydanticModel]) -> list[_SpanT]:
    """The spans that match all of the links. `trace_id` and `span_id` compare ids, other keys attributes."""
    wanted = list(links)
    return [span for span in spans if all(_matches(span, link) for link in wanted)]


def _matches(span: SpanLike, link: LinkPydanticModel) -> bool:
    from agentlightning.types import Span

    if link.key_match not in ("trace_id", "span_id"):
        attributes: Mapping[str, Any] = span.attributes or {}
        return link.key_match in attributes and attributes[link.key_match] == link.value_match
    if isinstance(span, Span):
        return bool(getattr(span, link.key_match) == link.value_match)
    context = span.get_span_context()
    if context is None:
        return False
    if link.key_match == "trace_id":
        return f"{context.trace_id:032x}" == link.value_match
    return f"{context.span_id:016x}" == link.value_match


def sanitize_attribute_value(value: Any, force: bool = True) -> AttributeValue:
    """The nearest value that OpenTelemetry allows: numbers of a list become alike, anything else JSON text.

    What has no JSON becomes its `str` if `force`, else it is a `ValueError`.
    """
    if isinstance(value, _PRIMITIVES):
        return value
    if isinstance(value, list):
        try:
            return sanitize_list_attribute_sanity(value)
        except ValueError:
            logger.warning("A list that contains mixed types is stored as JSON text.")
    try:
        return json.dumps(value, default=str if force else None)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the value has no JSON: {error}") from error


def sanitize_list_attribute_sanity(maybe_list: Iterable[Any]) -> AttributeValue:
    """A list as OpenTelemetry allows it, of strings, of booleans, of integers or of floats; `ValueError` for
    anything else."""
    values = list(maybe_list)
    if all(isinstance(item, str) for item in values) or all(isinstance(item, bool) for item in values):
        return values
    if all(isinstance(item, int) for item in values):
        return [int(item) for item in values]
    if all(isinstance(item, (int, float)) for item in values):
        return [float(item) for item in values]
    kinds = sorted({type(item).__name__ for item in values})
    raise ValueError(f"List must contain only one type of primitive values, got: {', '.join(kinds)}.")


def sanitize_attributes(attributes: Mapping[str, Any], force: bool = True) -> Attributes:
    """`sanitize_attribute_value` for each of the attributes; an error names the key."""
    sanitized: Attributes = {}
    for key, value in attributes.items():
        try:
            sanitized[key] = sanitize_attribute_value(value, force=force)
        except ValueError as error:
            raise ValueError(f"attribute {key!r}: {error}") from error
    return sanitized


def check_attributes_sanity(attributes: Mapping[Any, Any]) -> None:
    """`ValueError` unless all keys are strings and all values primitives or lists of one kind of them."""
    for key, value in attributes.items():
        if not isinstance(key, str):
            raise ValueError(f"attribute keys must be strings, but found {key!r}")
        if isinstance(value, list):
            alike = all(isinstance(item, str) for item in value) or all(
                isinstance(item, (int, float)) for item in value
            )
            if not alike:
                raise ValueError(f"attribute {key!r} must be a list of strings or a list of numbers")
        elif not isinstance(value, _PRIMITIVES):
            raise ValueError(
                f"attribute {key!r} must be a string, number, boolean or a list of these, "
                f"not {type(value).__name__}"
            )


def format_exception_attributes(exception: BaseException) -> dict[str, Any]:
    """The attributes that stand for an exception, by OpenTelemetry's names."""
    attributes: dict[str, Any] = {
        "exception.type": type(exception).__name__,
        "exception.message": str(exception),
        "exception.escaped": True,
    }
    stacktrace = "".join(traceback.format_exception(exception))
    if stacktrace.strip():
        attributes["exception.stacktrace"] = stacktrace
    return attributes


def get_tracer_provider(inspect: bool = True) -> TracerProvider:
    """OpenTelemetry's global provider; `RuntimeError` when none has been set. One that is not of the SDK, and
    so may record nothing, is logged.

    With `inspect` its span processors are logged at DEBUG; AGL_EMITTER_DEBUG switches that on or off for all.
    """
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import ProxyTracerProvider
    from opentelemetry.trace import get_tracer_provider as get_global_provider

    provider = get_global_provider()
    if isinstance(provider, ProxyTracerProvider):
        raise RuntimeError(
            "Tracer is not initialized. Cannot emit a meaningful span. Run within a tracer of Agent "
            "Lightning, or set a provider with opentelemetry.trace.set_tracer_provider()."
        )
    if not isinstance(provider, TracerProvider):
        logger.error("The global tracer provider is none of OpenTelemetry's SDK: %r", provider)
        return cast("TracerProvider", provider)
    listing = resolve_bool_env_var(
        LightningEnvVar.AGL_EMITTER_DEBUG, fallback=logger.isEnabledFor(logging.DEBUG)
    )
    if inspect and listing:
        names = [type(processor).__name__ for processor in get_span_processors(provider)]
        logger.debug("Tracer provider %r has the span processors %s.", provider, names)
    return provider


def get_span_processors(
    provider: TracerProvider, kind: type[SpanProcessor] | None = None
) -> list[SpanProcessor]:
    """The provider's span processors, or those of one kind."""
    return [
        processor
        for processor in provider._active_span_processor._span_processors
        if kind is None or isinstance(processor, kind)
    ]


def get_tracer(use_active_span_processor: bool = True) -> Tracer:
    """A tracer of the global provider; or one of the same resource whose spans go nowhere."""
    from opentelemetry.sdk.trace import TracerProvider

    provider = get_tracer_provider(inspect=use_active_span_processor)
    if not use_active_span_processor and not isinstance(provider, TracerProvider):
        provider = TracerProvider(shutdown_on_exit=False)
    elif not use_active_span_processor:
        provider = TracerProvider(
            sampler=provider.sampler,
            resource=provider.resource,
            id_generator=provider.id_generator,
            shutdown_on_exit=False,
        )
    return provider.get_tracer("agentlightning")
