"""Functions as agents: `@rollout`, `@llm_rollout`, `@prompt_rollout`."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, overload

from agentlightning.litagent.litagent import LitAgent
from agentlightning.types import LLM, AttemptedRollout, PromptTemplate, ProxyLLM

if TYPE_CHECKING:
    from agentlightning.types import NamedResources, Rollout, RolloutRawResult

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R", LLM, PromptTemplate)


class FunctionalLitAgent(LitAgent[T]):
    """A function as an agent. It can still be called like the function that it was made of."""

    def __init__(self, rollout_func: Callable[..., Any], *, strip_proxy: bool = True) -> None:
        """Wraps a function.

        Args:
            rollout_func: Takes the task, and by name whichever it asks for of `rollout`, `llm` and
                `prompt_template`.
            strip_proxy: Whether a `ProxyLLM` is made a plain `LLM` whose endpoint names rollout and attempt.
        """
        super().__init__()
        self._rollout_func = rollout_func
        self._strip_proxy = strip_proxy
        self._signature = inspect.signature(rollout_func)
        functools.update_wrapper(self, rollout_func)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # An agent that its module has under its own name travels as that name. By value, everything that the
        # function refers to would have to travel too.
        module = getattr(self, "__module__", None)
        name = getattr(self, "__qualname__", "")
        if module != "__main__":
            found: Any = sys.modules.get(module or "")
            for part in name.split("."):
                found = getattr(found, part, None)
            if found is self:
                return name
        return super().__reduce_ex__(protocol)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state.pop("_signature")
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._signature = inspect.signature(self._rollout_func)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function itself."""
        return self._rollout_func(*args, **kwargs)

    def is_async(self) -> bool:
        """Whether the function is asynchronous."""
        return inspect.iscoroutinefunction(self._rollout_func)

    def rollout_method(self, mode: str | None) -> Callable[..., Any]:
        """The function is run in every mode."""
        return self.rollout_async if self.is_async() else self.rollout

    def rollout(self, task: T, resources: NamedResources, rollout: Rollout) -> RolloutRawResult:
        """Runs the function.

        Raises:
            RuntimeError: if it is asynchronous.
        """
        if self.is_async():
            raise RuntimeError(f"{self._rollout_func!r} is asynchronous; use rollout_async.")
        result: RolloutRawResult = self._rollout_func(task, **self._arguments(resources, rollout))
        return result

    async def rollout_async(self, task: T, resources: NamedResources, rollout: Rollout) -> RolloutRawResult:
        """Runs the async function.

        Raises:
            RuntimeError: if it is not asynchronous.
        """
        if not self.is_async():
            raise RuntimeError(f"{self._rollout_func!r} is synchronous; use rollout.")
        result: RolloutRawResult = await self._rollout_func(task, **self._arguments(resources, rollout))
        return result

    def _accepts(self, name: str) -> bool:
        return name in self._signature.parameters

    def _accepts_rollout(self) -> bool:
        return self._accepts("rollout")

    def _accepts_llm(self) -> bool:
        return self._accepts("llm")

    def _accepts_prompt_template(self) -> bool:
        return self._accepts("prompt_template")

    def _arguments(self, resources: NamedResources, rollout: Rollout) -> dict[str, Any]:
        arguments: dict[str, Any] = {}
        if self._accepts_rollout():
            arguments["rollout"] = rollout
        if self._accepts_llm():
            llm = _first(resources, LLM, "LLM")
            if self._strip_proxy and isinstance(llm, ProxyLLM):
                if not isinstance(rollout, AttemptedRollout):
                    raise ValueError("A ProxyLLM can only be resolved for an AttemptedRollout.")
                llm = llm.with_attempted_rollout(rollout)
            arguments["llm"] = llm
        if self._accepts_prompt_template():
            arguments["prompt_template"] = _first(resources, PromptTemplate, "prompt template")
        return arguments


def _first(resources: NamedResources, kind: type[R], what: str) -> R:
    """The first resource of a kind."""
    found = [(name, resource) for name, resource in resources.items() if isinstance(resource, kind)]
    if not found:
        raise ValueError(f"No {what} resource found in the provided resources.")
    if len(found) > 1:
        names = [name for name, _ in found]
        logger.warning("Several %s resources found: %s. The first, %r, is used.", what, names, names[0])
    return found[0][1]


def _validate(func: Callable[..., Any], resource: str) -> bool:
    parameters = list(inspect.signature(func).parameters)
    if len(parameters) < 2:
        raise ValueError(f"Function {func} must have at least 2 parameters.")
    if parameters[0] != "task":
        raise ValueError(f"Function {func} must be a positional parameter called 'task' first.")
    if resource not in parameters:
        raise ValueError(f"Function {func} must have a positional parameter called '{resource}'.")
    return True


def _validate_llm_rollout_func(func: Callable[..., Any]) -> bool:
    return _validate(func, "llm")


def _validate_prompt_rollout_func(func: Callable[..., Any]) -> bool:
    return _validate(func, "prompt_template")


@overload
def llm_rollout(func: Callable[..., Any]) -> FunctionalLitAgent[Any]: ...


@overload
def llm_rollout(*, strip_proxy: bool = True) -> Callable[[Callable[..., Any]], FunctionalLitAgent[Any]]: ...


def llm_rollout(func: Callable[..., Any] | None = None, *, strip_proxy: bool = True) -> Any:
    """Makes an agent of a function `(task, llm)`, plain or async, with `rollout` as an optional third
    parameter.

    Args:
        func: The function.
        strip_proxy: Whether a `ProxyLLM` is made a plain `LLM` whose endpoint names rollout and attempt.

    Raises:
        ValueError: if the parameters are not those.
    """

    def decorate(func: Callable[..., Any]) -> FunctionalLitAgent[Any]:
        _validate_llm_rollout_func(func)
        return FunctionalLitAgent(func, strip_proxy=strip_proxy)

    return decorate if func is None else decorate(func)


@overload
def prompt_rollout(func: Callable[..., Any]) -> FunctionalLitAgent[Any]: ...


@overload
def prompt_rollout() -> Callable[[Callable[..., Any]], FunctionalLitAgent[Any]]: ...


def prompt_rollout(func: Callable[..., Any] | None = None) -> Any:
    """Makes an agent of a function `(task, prompt_template)`, with `rollout` as an optional third parameter.

    Raises:
        ValueError: if the parameters are not those.
    """

    def decorate(func: Callable[..., Any]) -> FunctionalLitAgent[Any]:
        _validate_prompt_rollout_func(func)
        return FunctionalLitAgent(func)

    return decorate if func is None else decorate(func)


def rollout(func: Callable[..., Any]) -> FunctionalLitAgent[Any]:
    """Makes an agent of a function `(task, llm)` or `(task, prompt_template)`, plain or async.

    Raises:
        NotImplementedError: if the parameters are neither.
    """
    for validate in (_validate_llm_rollout_func, _validate_prompt_rollout_func):
        try:
            validate(func)
        except ValueError:
            continue
        return FunctionalLitAgent(func)
    raise NotImplementedError(
        f"Function signature {inspect.signature(func)} does not match any known agent patterns: "
        "(task, llm[, rollout]) or (task, prompt_template[, rollout])."
    )
