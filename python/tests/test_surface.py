"""The names that 0.3's users import, from where they import them."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys
from enum import Enum
from types import ModuleType
from typing import Any

import pytest

import agentlightning as agl
from agentlightning import semconv

TOP_LEVEL = [
    "Adapter",
    "TraceAdapter",
    "OtelTraceAdapter",
    "TraceToTripletBase",
    "TracerTraceToTriplet",
    "LlmProxyTraceToTriplet",
    "TraceToMessages",
    "Algorithm",
    "algo",
    "FastAlgorithm",
    "Baseline",
    "APO",
    "VERL",
    "AgentLightningClient",
    "DevTaskLoader",
    "AgentLightningServer",
    "lightning_cli",
    "operation",
    "emit_reward",
    "emit_message",
    "emit_object",
    "emit_exception",
    "emit_annotation",
    "get_reward_value",
    "get_rewards_from_span",
    "is_reward_span",
    "find_reward_spans",
    "find_final_reward",
    "get_message_value",
    "get_object_value",
    "reward",
    "LightningEnvVar",
    "resolve_bool_env_var",
    "resolve_int_env_var",
    "resolve_str_env_var",
    "ExecutionStrategy",
    "ClientServerExecutionStrategy",
    "SharedMemoryExecutionStrategy",
    "ExecutionEvent",
    "ThreadingEvent",
    "MultiprocessingEvent",
    "LitAgent",
    "rollout",
    "llm_rollout",
    "prompt_rollout",
    "LLMProxy",
    "setup_logging",
    "setup_module_logging",
    "configure_logger",
    "Runner",
    "LitAgentRunner",
    "LegacyAgentRunner",
    "LightningStore",
    "LightningStoreCapabilities",
    "LightningStoreStatistics",
    "LightningStoreClient",
    "LightningStoreServer",
    "InMemoryLightningStore",
    "CollectionBasedLightningStore",
    "LightningStoreThreaded",
    "Tracer",
    "OtelTracer",
    "AgentOpsTracer",
    "DummyTracer",
    "get_active_tracer",
    "set_active_tracer",
    "clear_active_tracer",
    "Trainer",
    "build_component",
    "Triplet",
    "RolloutLegacy",
    "Task",
    "TaskInput",
    "TaskIfAny",
    "RolloutRawResultLegacy",
    "RolloutRawResult",
    "RolloutMode",
    "GenericResponse",
    "ParallelWorkerBase",
    "Dataset",
    "AttemptStatus",
    "RolloutStatus",
    "RolloutConfig",
    "Rollout",
    "Attempt",
    "AttemptedRollout",
    "EnqueueRolloutRequest",
    "Hook",
    "Worker",
    "WorkerStatus",
    "PaginatedResult",
    "FilterOptions",
    "SortOptions",
    "FilterField",
    "Resource",
    "LLM",
    "ProxyLLM",
    "PromptTemplate",
    "ResourceUnion",
    "NamedResources",
    "ResourcesUpdate",
    "AttributeValue",
    "Attributes",
    "TraceState",
    "SpanContext",
    "TraceStatus",
    "Event",
    "Link",
    "OtelResource",
    "Span",
    "SpanNames",
    "SpanAttributeNames",
    "SpanLike",
    "StatusCode",
    "SpanCoreFields",
    "SpanRecordingContext",
    "adapter",
    "algorithm",
    "client",
    "config",
    "core",
    "emitter",
    "env_var",
    "execution",
    "instrumentation",
    "litagent",
    "llm_proxy",
    "logging",
    "resources",
    "runner",
    "semconv",
    "server",
    "store",
    "tracer",
    "trainer",
    "types",
    "utils",
]

BY_MODULE = {
    "adapter.base": "Adapter OtelTraceAdapter TraceAdapter",
    "adapter.messages": "OpenAIMessages TraceToMessages",
    "adapter.triplet": "LlmProxyTraceToTriplet RewardMatchPolicy TraceToTriplet TracerTraceToTriplet "
    "TraceTree TraceToTripletBase Transition",
    "algorithm.apo": "APO",
    "algorithm.apo.apo": "APO RolloutResultForAPO VersionedPromptTemplate batch_iter_over_dataset poml "
    "random",
    "algorithm.apo.poml": "poml",
    "algorithm.base": "Algorithm",
    "algorithm.decorator": "FunctionalAlgorithm algo",
    "algorithm.fast": "Baseline FastAlgorithm",
    "algorithm.utils": "batch_iter_over_dataset with_llm_proxy with_store",
    "algorithm.verl": "VERL",
    "algorithm.verl.interface": "VERL",
    "cli": "main",
    "cli.prometheus": "main",
    "cli.store": "main",
    "cli.vllm": "main",
    "client": "AgentLightningClient DevTaskLoader",
    "config": "lightning_cli",
    "emitter": "reward",
    "emitter.annotation": "OperationContext emit_annotation get_active_tracer operation",
    "emitter.exception": "emit_exception get_active_tracer",
    "emitter.message": "emit_message get_active_tracer get_message_value",
    "emitter.object": "emit_object encode_object get_active_tracer get_object_value",
    "emitter.reward": "emit_annotation emit_reward find_final_reward find_reward_spans get_reward_value "
    "get_rewards_from_span is_reward_span reward",
    "env_var": "LightningEnvVar",
    "execution.base": "ExecutionStrategy",
    "execution.client_server": "ClientServerExecutionStrategy",
    "execution.events": "ExecutionEvent MultiprocessingEvent ThreadingEvent",
    "execution.inter_process": "InterProcessExecutionStrategy",
    "execution.shared_memory": "SharedMemoryExecutionStrategy",
    "instrumentation": "AGENTOPS_INSTALLED AGENTOPS_LANGCHAIN_INSTALLED LITELLM_INSTALLED VLLM_INSTALLED "
    "WEAVE_INSTALLED instrument_all uninstrument_all",
    "instrumentation.agentops": "BypassableAuthenticatedOTLPExporter BypassableOTLPMetricExporter "
    "BypassableOTLPSpanExporter BypassableV3Client BypassableV4Client enable_agentops_service "
    "instrument_agentops uninstrument_agentops",
    "instrumentation.agentops_langchain": "instrument_agentops_langchain uninstrument_agentops_langchain",
    "instrumentation.litellm": "instrument_litellm uninstrument_litellm",
    "instrumentation.vllm": "instrument_vllm uninstrument_vllm",
    "instrumentation.weave": "InMemoryWeaveTraceServer instrument_weave uninstrument_weave",
    "litagent.decorator": "FunctionalLitAgent llm_rollout prompt_rollout rollout",
    "litagent.litagent": "LitAgent is_v0_1_rollout_api",
    "llm_proxy": "AddLogprobs AddReturnTokenIds LLMProxy LightningOpenTelemetry LightningSpanExporter "
    "MessageInspectionMiddleware ModelConfig RolloutAttemptMiddleware StreamConversionMiddleware "
    "get_active_llm_proxy initialize_llm_callbacks set_active_llm_proxy",
    "logging": "setup setup_module",
    "reward": "emit_reward find_final_reward find_reward_spans get_reward_value is_reward_span reward",
    # With what 0.3's tests put something else in place of, as in `tracer.dummy` and `algorithm.apo.apo`.
    "runner.agent": "LitAgentRunner OtelTracer asyncio system_snapshot",
    "runner.base": "Runner",
    "runner.legacy": "LegacyAgentRunner LegacyRunner",
    "semconv": "AGL_ANNOTATION AGL_EXCEPTION AGL_MESSAGE AGL_OBJECT AGL_OPERATION AGL_REWARD AGL_VIRTUAL "
    "LightningResourceAttributes LightningSpanAttributes LinkAttributes LinkPydanticModel RewardAttributes "
    "RewardPydanticModel",
    "server": "AgentLightningServer",
    "store.base": "UNSET LightningStore Unset",
    "store.collection_based": "CollectionBasedLightningStore",
    "store.memory": "InMemoryLightningStore",
    "store.mongo": "MongoLightningStore",
    "tracer.agentops": "AgentOpsTracer LightningSpanProcessor",
    "tracer.base": "Tracer",
    "tracer.dummy": "DummyTracer time",
    "tracer.otel": "LightningSpanProcessor OtelTracer",
    "tracer.weave": "WeaveTracer WeaveTracerManagedTraceServer",
    "trainer.init_utils": "build_component instantiate_component instantiate_from_spec load_class",
    "trainer.legacy": "TrainerLegacy",
    "trainer.registry": "ExecutionStrategyRegistry",
    "trainer.trainer": "Trainer",
    "types.core": "Attempt AttemptStatus AttemptedRollout Dataset EnqueueRolloutRequest FilterField "
    "FilterOptions GenericResponse Hook PaginatedResult ParallelWorkerBase Rollout RolloutConfig "
    "RolloutLegacy RolloutMode RolloutRawResult RolloutRawResultLegacy RolloutStatus SortOptions "
    "Task TaskIfAny TaskInput Triplet Worker WorkerStatus",
    "types.resources": "LLM NamedResources PromptTemplate ProxyLLM Resource ResourceUnion ResourcesUpdate",
    "types.tracer": "AttributeValue Attributes Event Link OtelResource Span SpanAttributeNames SpanContext "
    "SpanCoreFields SpanLike SpanNames SpanRecordingContext StatusCode TraceState TraceStatus "
    "convert_timestamp extract_extra_fields",
    "utils.id": "generate_id",
    "utils.metrics": "ConsoleMetricsBackend MetricsBackend MultiMetricsBackend PrometheusMetricsBackend "
    "get_prometheus_registry setup_multiprocess_prometheus shutdown_metrics",
    "utils.otel": "check_attributes_sanity extract_links_from_attributes extract_tags_from_attributes "
    "filter_and_unflatten_attributes filter_attributes flatten_attributes format_exception_attributes "
    "full_qualified_name get_span_processors get_tracer get_tracer_provider make_link_attributes "
    "make_tag_attributes query_linked_spans sanitize_attribute_value sanitize_attributes "
    "sanitize_list_attribute_sanity unflatten_attributes",
    "utils.otlp": "LightningStoreOTLPExporter handle_otlp_export spans_from_proto",
    "utils.server_launcher": "LaunchMode PythonServerLauncher PythonServerLauncherArgs",
    "utils.system_snapshot": "system_snapshot",
    "verl": "VERLNotSupportedError",
    "verl.__main__": "main",
    "verl.async_server": "PatchedvLLMServer",
    "verl.daemon": "AgentModeDaemon",
    "verl.dataset": "AgentDataset LoadedDataset",
    "verl.entrypoint": "TaskRunner main run_ppo",
    "verl.trainer": "AgentLightningTrainer",
}


@pytest.mark.parametrize("name", TOP_LEVEL)
def test_top_level(name: str) -> None:
    assert getattr(agl, name) is not None
    assert name in dir(agl)


@pytest.mark.parametrize("module", BY_MODULE)
def test_by_module(module: str) -> None:
    found = importlib.import_module(f"agentlightning.{module}")
    assert [name for name in BY_MODULE[module].split() if not hasattr(found, name)] == []


SHADOWS = """
import sys
import agentlightning as agl
{first}
import agentlightning.tracer as t
from agentlightning import tracer
assert t is tracer is agl.tracer is sys.modules["agentlightning.tracer"]
assert agl.resources is sys.modules["agentlightning.types.resources"]
from agentlightning.reward import reward
from agentlightning.emitter import reward as same
assert reward is same is agl.reward.reward
def judge(): return 1.0
assert agl.reward(judge).__wrapped__ is judge
"""


@pytest.mark.parametrize(
    "first",
    [
        "",
        "agl.Trainer",
        "import agentlightning.runner",
        "import agentlightning.types",
        "import agentlightning.reward",
    ],
)
def test_names_mean_what_they_say_whatever_was_imported_first(first: str) -> None:
    # 0.3: `agl.tracer` is agentlightning.types.tracer, and `agl.reward` is no decorator.
    subprocess.run([sys.executable, "-W", "error", "-c", SHADOWS.format(first=first)], check=True, timeout=60)


def test_star_imports_bring_no_modules() -> None:
    from agentlightning import types

    names: dict[str, Any] = {}
    exec("from agentlightning.types import *", names)
    assert [name for name, value in names.items() if isinstance(value, ModuleType)] == []
    assert {"Span", "LLM", "Rollout"} <= names.keys()
    assert types.__all__


SEMCONV = {
    "AGL_ANNOTATION": "agentlightning.annotation",
    "AGL_MESSAGE": "agentlightning.message",
    "AGL_OBJECT": "agentlightning.object",
    "AGL_EXCEPTION": "agentlightning.exception",
    "AGL_OPERATION": "agentlightning.operation",
    "AGL_REWARD": "agentlightning.reward",
    "AGL_VIRTUAL": "agentlightning.virtual",
    "LightningResourceAttributes.ROLLOUT_ID": "agentlightning.rollout_id",
    "LightningResourceAttributes.ATTEMPT_ID": "agentlightning.attempt_id",
    "LightningResourceAttributes.SPAN_SEQUENCE_ID": "agentlightning.span_sequence_id",
    "LightningResourceAttributes.TRACER_NAME": "agentlightning.tracer.name",
    "LightningSpanAttributes.REWARD": "agentlightning.reward",
    "LightningSpanAttributes.LINK": "agentlightning.link",
    "LightningSpanAttributes.TAG": "agentlightning.tag",
    "LightningSpanAttributes.MESSAGE_BODY": "agentlightning.message.body",
    "LightningSpanAttributes.OBJECT_TYPE": "agentlightning.object.type",
    "LightningSpanAttributes.OBJECT_LITERAL": "agentlightning.object.literal",
    "LightningSpanAttributes.OBJECT_JSON": "agentlightning.object.json",
    "LightningSpanAttributes.OPERATION_NAME": "agentlightning.operation.name",
    "LightningSpanAttributes.OPERATION_INPUT": "agentlightning.operation.input",
    "LightningSpanAttributes.OPERATION_OUTPUT": "agentlightning.operation.output",
    "RewardAttributes.REWARD_NAME": "name",
    "RewardAttributes.REWARD_VALUE": "value",
    "LinkAttributes.KEY_MATCH": "key_match",
    "LinkAttributes.VALUE_MATCH": "value_match",
}


@pytest.mark.parametrize("name", SEMCONV)
def test_semantic_conventions(name: str) -> None:
    owner, _, member = name.rpartition(".")
    value = getattr(getattr(semconv, owner) if owner else semconv, member)
    if owner:
        assert isinstance(value, Enum)
        # They are compared by `.value`.
        assert not isinstance(value, str)
        value = value.value
    assert value == SEMCONV[name]


@pytest.mark.parametrize(
    ("make", "instead"),
    [
        (lambda: agl.CollectionBasedLightningStore(object()), "InMemoryLightningStore"),
        (lambda: agl.store.mongo.MongoLightningStore(mongo_uri="mongodb://h"), "SqliteLightningStore"),  # type: ignore[attr-defined]
    ],
)
def test_stores_that_are_only_a_name_say_what_to_use(make: Any, instead: str) -> None:
    importlib.import_module("agentlightning.store.mongo")
    with pytest.raises(agl.StoreUnsupportedError, match=instead):
        make()
    assert issubclass(agl.CollectionBasedLightningStore, agl.LightningStore)


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("algorithm.apo.poml.poml", "gradient_prompts"),
        ("instrumentation.agentops.BypassableAuthenticatedOTLPExporter", "AgentOpsTracer"),
        ("instrumentation.agentops.BypassableV3Client", "AgentOpsTracer"),
        ("instrumentation.agentops.BypassableV4Client", "AgentOpsTracer"),
        ("instrumentation.weave.InMemoryWeaveTraceServer", "instrument_weave"),
        ("llm_proxy.AddLogprobs", r'callbacks=\["logprobs"\]'),
        ("llm_proxy.AddReturnTokenIds", r'callbacks=\["return_token_ids"\]'),
        ("llm_proxy.LightningOpenTelemetry", "records each call"),
        ("llm_proxy.LightningSpanExporter", "LightningStoreOTLPExporter"),
        ("llm_proxy.MessageInspectionMiddleware", "query_spans"),
        ("llm_proxy.RolloutAttemptMiddleware", "the gateway reads"),
        ("llm_proxy.StreamConversionMiddleware", "streams pass"),
        ("llm_proxy.initialize_llm_callbacks", "name callbacks"),
        ("tracer.weave.WeaveTracerManagedTraceServer", "WeaveTracer gives"),
    ],
)
def test_parts_that_are_only_a_name_say_what_does_their_work(name: str, instead: str) -> None:
    module, _, attribute = name.rpartition(".")
    found = getattr(importlib.import_module(f"agentlightning.{module}"), attribute)
    with pytest.raises(
        agl.FormerPartError, match=rf"^{attribute} of agentlightning 0\.3 .*{instead}"
    ) as raised:
        found(object())
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


def test_the_exporter_says_which_rollout_it_is() -> None:
    # Whether a store takes what it sends is in test_otlp.
    from agentlightning.utils.otlp import LightningStoreOTLPExporter

    exporter = LightningStoreOTLPExporter(endpoint="http://localhost:1/v1/traces")
    assert (exporter.endpoint, exporter.rollout_id, exporter.attempt_id) == (
        "http://localhost:1/v1/traces",
        None,
        None,
    )
    exporter.enable_store_otlp("http://localhost:2/v1/traces", "r", "a")
    assert (exporter.endpoint, exporter.rollout_id, exporter.attempt_id) == (
        "http://localhost:2/v1/traces",
        "r",
        "a",
    )
    exporter.disable_store_otlp()
    assert (exporter.endpoint, exporter.rollout_id) == ("http://localhost:1/v1/traces", None)
