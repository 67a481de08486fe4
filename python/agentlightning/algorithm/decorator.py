"""Functions as algorithms: `@algo`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from agentlightning.algorithm.base import Algorithm

if TYPE_CHECKING:
    from agentlightning.types import Dataset

_NAMED_ONLY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class FunctionalAlgorithm(Algorithm):
    """A function as an algorithm. It can still be called like the function that it was made of."""

    def __init__(self, algorithm_func: Callable[..., Any]) -> None:
        """Wraps a function, which gets by name whichever it asks for of `store`, `adapter`, `llm_proxy`,
        `initial_resources`, `train_dataset` and `val_dataset`."""
        self._algorithm_func = algorithm_func
        self._parameters = {
            name
            for name, parameter in inspect.signature(algorithm_func).parameters.items()
            if parameter.kind not in _NAMED_ONLY
        }
        functools.update_wrapper(self, algorithm_func)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function itself."""
        return self._algorithm_func(*args, **kwargs)

    def is_async(self) -> bool:
        """Whether the function is asynchronous."""
        return inspect.iscoroutinefunction(self._algorithm_func)

    def run(self, train_dataset: Dataset[Any] | None = None, val_dataset: Dataset[Any] | None = None) -> Any:
        """Runs the function: a coroutine if it is asynchronous; otherwise its result is discarded.

        Raises:
            TypeError: for a dataset that the function has no parameter for.
            ValueError: if the store or the adapter that it asks for has not been set.
        """
        arguments: dict[str, Any] = {}
        for name, dataset in (("train_dataset", train_dataset), ("val_dataset", val_dataset)):
            if name in self._parameters:
                arguments[name] = dataset
            elif dataset is not None:
                raise TypeError(f"{name} is provided but not supported by the algorithm function.")
        for name, getter in (
            ("store", self.get_store),
            ("adapter", self.get_adapter),
            ("llm_proxy", self.get_llm_proxy),
            ("initial_resources", self.get_initial_resources),
        ):
            if name in self._parameters:
                arguments[name] = getter()
        result = self._algorithm_func(**arguments)
        return result if self.is_async() else None


def algo(func: Callable[..., Any]) -> FunctionalAlgorithm:
    """Makes an algorithm of a function, plain or async. See `FunctionalAlgorithm` for the parameters it may
    have."""
    return FunctionalAlgorithm(func)
