"""Attribute helpers, semantic conventions, settings and logging."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import agentlightning as agl
from agentlightning import semconv
from agentlightning.env_var import (
    LightningEnvVar,
    resolve_bool_env_var,
    resolve_int_env_var,
    resolve_str_env_var,
)
from agentlightning.semconv import LinkPydanticModel
from agentlightning.utils.id import generate_id
from agentlightning.utils.otel import (
    check_attributes_sanity,
    extract_links_from_attributes,
    extract_tags_from_attributes,
    filter_and_unflatten_attributes,
    filter_attributes,
    flatten_attributes,
    format_exception_attributes,
    full_qualified_name,
    get_span_processors,
    get_tracer,
    get_tracer_provider,
    make_link_attributes,
    make_tag_attributes,
    query_linked_spans,
    sanitize_attribute_value,
    sanitize_attributes,
    sanitize_list_attribute_sanity,
    unflatten_attributes,
)


@pytest.mark.parametrize(
    ("nested", "flat"),
    [
        (
            {"a": None, "b": [None, 1], "c": [1, True], "d": [1, 2.0], "e": ("x",)},
            {"a": None, "b.0": None, "b.1": 1, "c.0": 1, "c.1": True, "d.0": 1, "d.1": 2.0, "e": ("x",)},
        ),
        ([1, 2], {"0": 1, "1": 2}),
        ({"a": [], "b": {}}, {}),
        ({"a": [{"x": 1}, {"x": 2}], "b": [1, 2]}, {"a.0.x": 1, "a.1.x": 2, "b": [1, 2]}),
        ("x", {"": "x"}),
    ],
)
def test_flatten(nested: Any, flat: dict[str, Any]) -> None:
    assert flatten_attributes(nested) == flat


def test_flatten_options_and_refusals(caplog: pytest.LogCaptureFixture) -> None:
    assert flatten_attributes({"a": ["x", "y"]}, expand_leaf_lists=True) == {"a.0": "x", "a.1": "y"}
    with caplog.at_level(logging.WARNING):
        flatten_attributes({"a": [1, "x"]})
    assert "mixed primitive types" in caplog.text
    with pytest.raises(ValueError, match="keys must be strings"):
        flatten_attributes({"a": {1: 2}})


@pytest.mark.parametrize(
    ("flat", "nested"),
    [
        ({"a.0.x": 1, "a.1": 2}, {"a": [{"x": 1}, 2]}),
        ({"0": "a", "1": "b"}, ["a", "b"]),
        ({"a.0": 1, "a.2": 2}, {"a": {"0": 1, "2": 2}}),
        ({"a.0": 1, "a.x": 2}, {"a": {"0": 1, "x": 2}}),
        ({"a": 1, "a.b": 2}, {"a": {"b": 2}}),
        ({"a.b": 2, "a": 1}, {"a": {"b": 2}}),
        ({"a": {"0": "kept"}}, {"a": {"0": "kept"}}),
        ({"a.10": 10, **{f"a.{n}": n for n in range(10)}}, {"a": list(range(11))}),
        ({}, {}),
    ],
)
def test_unflatten(flat: dict[str, Any], nested: Any) -> None:
    assert unflatten_attributes(flat) == nested


def test_filter() -> None:
    attributes = {"p": 1, "p.a.0": 2, "p.a.1": 3, "px": 4}
    assert filter_attributes(attributes, "p") == {"p": 1, "p.a.0": 2, "p.a.1": 3}
    assert filter_and_unflatten_attributes(attributes, "p.a") == [2, 3]
    assert filter_and_unflatten_attributes(attributes, "q") == {}
    with pytest.raises(ValueError, match="'p'"):
        filter_and_unflatten_attributes(attributes, "p")


def test_tags_and_links() -> None:
    tags = make_tag_attributes(["a", "b"])
    assert tags == {"agentlightning.tag.0": "a", "agentlightning.tag.1": "b"}
    assert extract_tags_from_attributes({**tags, "other": 1}) == ["a", "b"]
    assert extract_tags_from_attributes({}) == []
    with pytest.raises(ValidationError):
        extract_tags_from_attributes({"agentlightning.tag.0": 1})
    links = make_link_attributes({"span_id": "s", "k": "v"})
    assert links == {
        "agentlightning.link.0.key_match": "span_id",
        "agentlightning.link.0.value_match": "s",
        "agentlightning.link.1.key_match": "k",
        "agentlightning.link.1.value_match": "v",
    }
    assert extract_links_from_attributes(links) == [
        LinkPydanticModel(key_match="span_id", value_match="s"),
        LinkPydanticModel(key_match="k", value_match="v"),
    ]
    assert extract_links_from_attributes({}) == []
    with pytest.raises(ValueError, match="'k'"):
        make_link_attributes({"k": 1})  # type: ignore[dict-item]


def test_linked_spans() -> None:
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider

    ours = [agl.Span.from_attributes(attributes={"k": value}) for value in ("v", "w")]
    by_key = LinkPydanticModel(key_match="k", value_match="v")
    by_id = LinkPydanticModel(key_match="span_id", value_match=ours[1].span_id)
    assert query_linked_spans(ours, [by_key]) == [ours[0]]
    assert query_linked_spans(ours, [by_id]) == [ours[1]]
    assert query_linked_spans(ours, [by_key, by_id]) == []
    assert query_linked_spans(ours, []) == ours

    provider = TracerProvider()
    with provider.get_tracer("t").start_as_current_span("s", attributes={"k": "v"}) as current:
        pass
    assert isinstance(current, ReadableSpan)
    context = current.get_span_context()
    by_trace = LinkPydanticModel(key_match="trace_id", value_match=f"{context.trace_id:032x}")
    bare = ReadableSpan("bare")
    assert query_linked_spans([current, bare], [by_key, by_trace]) == [current]
    assert query_linked_spans([bare], [by_trace]) == []
    provider.shutdown()


def test_sanitize(caplog: pytest.LogCaptureFixture) -> None:
    given = {
        "a": None,
        "b": [1, True],
        "c": [1, 2.5],
        "d": ["x", 1],
        "e": [],
        "f": {"k": 1},
        "g": (1, 2),
        "h": "s",
        "i": [True],
    }
    with caplog.at_level(logging.WARNING):
        assert sanitize_attributes(given) == {
            "a": "null",
            "b": [1, 1],
            "c": [1.0, 2.5],
            "d": '["x", 1]',
            "e": [],
            "f": '{"k": 1}',
            "g": "[1, 2]",
            "h": "s",
            "i": [True],
        }
    assert "mixed types" in caplog.text
    numbers = sanitize_attribute_value([1, True])
    assert [type(number) for number in numbers] == [int, int]  # type: ignore[union-attr]
    assert sanitize_attribute_value(Path("/x")) == '"/x"'
    with pytest.raises(ValueError, match="'bad'"):
        sanitize_attributes({"bad": object()}, force=False)


def test_sanitize_a_list() -> None:
    for given, expected in (((1, True), [1, 1]), ([1, 2.5], [1.0, 2.5]), (["a"], ["a"]), ([], [])):
        assert sanitize_list_attribute_sanity(given) == expected
    with pytest.raises(ValueError, match="only one type of primitive values, got: int, str"):
        sanitize_list_attribute_sanity(["a", 1])


@pytest.mark.parametrize("value", [None, {1}, (1,), object(), [1, "x"], [None]])
def test_sanity_refuses(value: Any) -> None:
    with pytest.raises(ValueError, match="'key'"):
        check_attributes_sanity({"key": value})


def test_sanity() -> None:
    check_attributes_sanity({"a": 1, "b": "x", "c": [1, 2.5], "d": ["x"], "e": [], "f": True})
    with pytest.raises(ValueError, match="keys must be strings"):
        check_attributes_sanity({1: 2})


def test_exceptions_and_names() -> None:
    class Broken(Exception):
        pass

    try:
        raise Broken("why")
    except Broken as error:
        attributes = format_exception_attributes(error)
    assert attributes["exception.type"] == "Broken"
    assert attributes["exception.message"] == "why"
    assert attributes["exception.escaped"] is True
    assert "test_helpers" in attributes["exception.stacktrace"]
    assert full_qualified_name(dict) == "dict"
    assert full_qualified_name(Path).startswith("pathlib")


def test_global_tracer_provider(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    with pytest.raises(RuntimeError, match="Tracer is not initialized"):
        get_tracer_provider()
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    monkeypatch.setenv("AGL_EMITTER_DEBUG", "1")
    with caplog.at_level(logging.DEBUG, logger="agentlightning"):
        assert get_tracer_provider() is provider
    assert "SimpleSpanProcessor" in caplog.text
    assert len(get_span_processors(provider, SimpleSpanProcessor)) == 1
    get_tracer(use_active_span_processor=False).start_span("unseen").end()
    get_tracer().start_span("seen").end()
    assert [span.name for span in exporter.get_finished_spans()] == ["seen"]

    other = trace.NoOpTracerProvider()
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", other)
    assert get_tracer_provider() is other
    assert "none of OpenTelemetry's SDK" in caplog.text
    get_tracer(use_active_span_processor=False).start_span("unseen").end()


def test_ids() -> None:
    for length in (0, 1, 8, 15):
        text = generate_id(length)
        assert len(text) == length
        assert set(text) <= set("0123456789abcdef")
    assert generate_id(16) != generate_id(16)


def test_names() -> None:
    assert semconv.AGL_ANNOTATION == "agentlightning.annotation"
    assert semconv.LightningSpanAttributes.REWARD.value == semconv.AGL_REWARD == "agentlightning.reward"
    assert semconv.LightningResourceAttributes.TRACER_NAME.value == "agentlightning.tracer.name"
    assert semconv.RewardAttributes.REWARD_VALUE.value == "value"
    assert not isinstance(semconv.LinkAttributes.KEY_MATCH, str)
    assert semconv.RewardPydanticModel(name="n", value=1).value == 1.0
    assert agl.SpanNames.REWARD.value == semconv.AGL_REWARD
    assert isinstance(agl.SpanNames.REWARD, str)


# Settings


@pytest.mark.parametrize(
    ("text", "value"), [(" TRUE ", True), ("1", True), ("on", True), ("No", False), ("off", False)]
)
def test_boolean_settings(monkeypatch: pytest.MonkeyPatch, text: str, value: bool) -> None:
    monkeypatch.setenv("AGL_MANAGED_STORE", text)
    assert resolve_bool_env_var(LightningEnvVar.AGL_MANAGED_STORE) is value
    assert resolve_bool_env_var(LightningEnvVar.AGL_MANAGED_STORE, override=not value) is (not value)


def test_other_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in LightningEnvVar:
        monkeypatch.delenv(variable.value, raising=False)
    assert resolve_bool_env_var(LightningEnvVar.AGL_MANAGED_STORE) is None
    assert resolve_int_env_var(LightningEnvVar.AGL_SERVER_PORT, fallback=4747) == 4747
    assert resolve_str_env_var(LightningEnvVar.AGL_SERVER_HOST, fallback="h") == "h"
    monkeypatch.setenv("AGL_SERVER_PORT", "80")
    assert resolve_int_env_var(LightningEnvVar.AGL_SERVER_PORT, fallback=1) == 80
    monkeypatch.setenv("AGL_SERVER_HOST", "there")
    assert resolve_str_env_var(LightningEnvVar.AGL_SERVER_HOST, "here") == "here"
    assert resolve_str_env_var(LightningEnvVar.AGL_SERVER_HOST, fallback="h") == "there"
    monkeypatch.setenv("AGL_SERVER_PORT", "eighty")
    with pytest.raises(ValueError, match="AGL_SERVER_PORT must be an integer"):
        resolve_int_env_var(LightningEnvVar.AGL_SERVER_PORT)
    monkeypatch.setenv("AGL_MANAGED_STORE", "maybe")
    with pytest.raises(ValueError, match="AGL_MANAGED_STORE"):
        resolve_bool_env_var(LightningEnvVar.AGL_MANAGED_STORE)


# Logging


@pytest.fixture
def loggers() -> Iterator[dict[str, logging.Logger]]:
    names = ["agentlightning", "agentlightning.store", "test.other"]
    before = {
        name: (logger.level, logger.propagate, list(logger.handlers))
        for name in names
        if (logger := logging.getLogger(name))
    }
    yield {name: logging.getLogger(name) for name in names}
    for name, (level, propagate, handlers) in before.items():
        logger = logging.getLogger(name)
        for handler in logger.handlers:
            if handler not in handlers:
                handler.close()
        logger.level, logger.propagate, logger.handlers = level, propagate, handlers


def test_logging_is_set_up_once_however_often(loggers: dict[str, logging.Logger], tmp_path: Path) -> None:
    extra = logging.StreamHandler()
    base = loggers["agentlightning"]
    for _ in range(2):
        agl.setup_logging(
            "DEBUG",
            files=str(tmp_path / "logs" / "all.log"),
            apply_to=["test.other"],
            extra_handlers=[extra],
            formatter=logging.Formatter("formatted %(message)s"),
            submodule_levels={"agentlightning.store": "ERROR"},
        )
    assert base.level == logging.DEBUG
    assert not base.propagate
    assert len(base.handlers) == 3
    assert extra in base.handlers
    assert set(loggers["test.other"].handlers) == set(base.handlers)
    assert loggers["agentlightning.store"].level == logging.ERROR
    loggers["test.other"].info("hello")
    assert (tmp_path / "logs" / "all.log").read_text().count("hello") == 1
    assert extra.formatter is not None
    assert extra.formatter.format(logging.makeLogRecord({"msg": "x"})) == "formatted x"


def test_logging_to_a_plain_console(
    loggers: dict[str, logging.Logger], capsys: pytest.CaptureFixture[str]
) -> None:
    logger = agl.setup_module_logging("WARNING", color=False)
    assert logger is loggers["agentlightning"]
    logger.warning("careful")
    assert "[WARNING] (Process-" in capsys.readouterr().err
    agl.setup_logging(console=False)
    assert logger.handlers == []
    with pytest.raises(ValueError, match="LOUD"):
        agl.setup_logging("LOUD")
    with pytest.warns(DeprecationWarning, match="setup_logging"):
        assert agl.configure_logger() is logger
