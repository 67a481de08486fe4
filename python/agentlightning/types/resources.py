"""Resources: named, versioned things that an algorithm improves and an agent uses."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Dict, Literal, Union

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SerializeAsAny, WrapValidator
from pydantic_core import PydanticUndefined
from typing_extensions import TypeAlias

if TYPE_CHECKING:
    from pydantic import ValidatorFunctionWrapHandler

    from .core import AttemptedRollout

__all__ = [
    "LLM",
    "NamedResources",
    "PromptTemplate",
    "ProxyLLM",
    "Resource",
    "ResourceUnion",
    "ResourcesUpdate",
]

logger = logging.getLogger(__name__)

_classes: dict[str, type[Resource]] = {}
"""The class that reads resources of a type; see `Resource`."""


class Resource(BaseModel):
    """The base of all resources.

    Give a subclass a `resource_type` with a default of its own, and what is stored as an instance of it is
    read back as one in every process that has imported the class. Where it has not been, and for a subclass
    without a type of its own, nothing is lost: the fields come back as extra attributes of the nearest known
    class.
    """

    model_config = ConfigDict(extra="allow", ser_json_inf_nan="strings")

    resource_type: Any

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        tag = _tag_of(cls)
        inherited = {_tag_of(base) for base in cls.__mro__[1:] if issubclass(base, Resource)}
        if tag is not None and tag not in inherited and tag not in _BUILT_IN:
            _classes[tag] = cls


def _tag_of(cls: type[Resource]) -> str | None:
    default = cls.model_fields["resource_type"].default
    return None if default is PydanticUndefined or default is None else str(default)


# Filled in at the end of the module: until then its own classes register like any other.
_BUILT_IN: frozenset[str] = frozenset()


class LLM(Resource):
    """A model endpoint that speaks OpenAI's protocol."""

    resource_type: Literal["llm"] = "llm"
    endpoint: str
    model: str
    api_key: str | None = None
    sampling_parameters: dict[str, Any] = Field(default_factory=dict)

    def get_base_url(self, *args: Any, **kwargs: Any) -> str:
        """The URL to give to a client. The arguments matter to `ProxyLLM` only."""
        return self.endpoint


class ProxyLLM(LLM):
    """A model endpoint behind a gateway, which learns from the path whose call it is.

    One that asks for a key has it among the extra fields, under the name `KEY`: agents get a token for their
    attempt in its place.
    """

    KEY: ClassVar[str] = "gateway_key"

    resource_type: Literal["proxy_llm"] = "proxy_llm"  # type: ignore[assignment]
    _initialized: bool = PrivateAttr(default=False)

    def model_post_init(self, context: Any, /) -> None:
        """Reading `endpoint` warns from here on."""
        super().model_post_init(context)
        self._initialized = True

    def __getattribute__(self, name: str) -> Any:
        if name == "endpoint" and sys._getframe(1).f_code.co_name != "get_base_url":
            private = super().__getattribute__("__pydantic_private__") or {}
            if private.get("_initialized"):
                logger.warning(
                    "Accessing 'endpoint' directly on ProxyLLM is discouraged: the gateway cannot tell whose "
                    "call it is. Use 'get_base_url(rollout_id, attempt_id)' instead."
                )
        return super().__getattribute__(name)

    def get_base_url(self, rollout_id: str | None = None, attempt_id: str | None = None) -> str:
        """The URL under which the gateway books calls to this rollout and attempt.

        Without both, the endpoint as it is. A trailing `/v1` stays at the end.
        """
        if rollout_id is None and attempt_id is None:
            return self.endpoint
        if not isinstance(rollout_id, str) or not isinstance(attempt_id, str):
            raise ValueError("rollout_id and attempt_id must be strings or all be empty")
        root = self.endpoint.removesuffix("/")
        version = "/v1" if root.endswith("/v1") else ""
        return f"{root.removesuffix('/v1')}/rollout/{rollout_id}/attempt/{attempt_id}{version}"

    def with_attempted_rollout(self, rollout: AttemptedRollout) -> LLM:
        """A plain `LLM` whose endpoint is this rollout's."""
        return self.for_attempt(rollout.rollout_id, rollout.attempt.attempt_id)

    def for_attempt(self, rollout_id: str, attempt_id: str) -> LLM:
        """A plain `LLM` whose endpoint is this attempt's, and whose key is good for it alone where the
        gateway asks for one."""
        key = (self.model_extra or {}).get(self.KEY)
        if key is not None:
            from agentlightning import _core

            key = _core.attempt_token(key, rollout_id, attempt_id)
        return LLM(
            endpoint=self.get_base_url(rollout_id, attempt_id),
            model=self.model,
            sampling_parameters=self.sampling_parameters,
            api_key=self.api_key if key is None else key,
        )


class PromptTemplate(Resource):
    """A prompt with holes."""

    resource_type: Literal["prompt_template"] = "prompt_template"
    template: str
    engine: Literal["jinja", "f-string", "poml"]

    def format(self, **kwargs: Any) -> str:
        """Fills the holes. Only the engine `f-string` is supported, which is `str.format`."""
        if self.engine == "f-string":
            return self.template.format(**kwargs)
        raise NotImplementedError(
            f"engine {self.engine!r} is not supported by format(): use 'f-string' or render it yourself"
        )


_BUILT_IN = frozenset(_classes)


def _read_resource(value: Any, handler: ValidatorFunctionWrapHandler) -> Resource:
    if isinstance(value, Resource):
        return value
    if isinstance(value, Mapping) and isinstance(tag := value.get("resource_type"), str):
        return _classes.get(tag, Resource).model_validate(value)
    resource: Resource = handler(value)
    return resource


ResourceUnion: TypeAlias = Annotated[
    Union[LLM, ProxyLLM, PromptTemplate, Resource], SerializeAsAny(), WrapValidator(_read_resource)
]
"""Any resource, told apart by `resource_type`; a user's own types included."""

NamedResources: TypeAlias = Dict[str, ResourceUnion]
"""Resources by name."""


class ResourcesUpdate(BaseModel):
    """One version of a set of named resources."""

    resources_id: str
    create_time: float
    """When the first version of this id was made."""
    update_time: float
    """When this version was made."""
    version: int
    """1 for the first version of an id, 2 for the second, and so on."""
    resources: NamedResources
