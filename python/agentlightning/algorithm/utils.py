"""What algorithms have in common."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from agentlightning.types import Dataset

T = TypeVar("T")
AsyncMethod = Callable[..., Coroutine[Any, Any, T]]


def with_store(method: AsyncMethod[T]) -> AsyncMethod[T]:
    """Decorates an async method of an algorithm so that it gets the store as its first argument."""

    @functools.wraps(method)
    async def wrapper(self: Any, *args: Any, **kwargs: Any) -> T:
        return await method(self, self.get_store(), *args, **kwargs)

    return wrapper


def with_llm_proxy(
    required: bool = False, auto_start: bool = True
) -> Callable[[AsyncMethod[T]], AsyncMethod[T]]:
    """Decorates an async method of an algorithm so that it gets the model gateway (or None) as its first
    argument.

    Args:
        required: Whether to refuse to run without one.
        auto_start: Whether to start it if it is not running. Only a gateway started here is stopped
            afterwards.

    Raises:
        ValueError: if one is required and there is none.
    """

    def decorate(method: AsyncMethod[T]) -> AsyncMethod[T]:
        @functools.wraps(method)
        async def wrapper(self: Any, *args: Any, **kwargs: Any) -> T:
            llm_proxy = self.get_llm_proxy()
            if llm_proxy is None and required:
                raise ValueError("This algorithm needs an LLM proxy; give the trainer one.")
            started = False
            if llm_proxy is not None and auto_start and not llm_proxy.is_running():
                await llm_proxy.start()
                started = True
            try:
                return await method(self, llm_proxy, *args, **kwargs)
            finally:
                if started:
                    await llm_proxy.stop()

        return wrapper

    return decorate


def batch_iter_over_dataset(dataset: Dataset[T], batch_size: int) -> Iterator[list[T]]:
    """Shuffled batches without end. No item comes twice in one batch, and none is left out of an epoch.

    A batch as large as the dataset or larger is the whole dataset.
    """
    indices = list(range(len(dataset)))
    if batch_size >= len(indices):
        while True:
            random.shuffle(indices)
            yield [dataset[index] for index in indices]
    batch: list[int] = []
    pending: list[int] = []
    while True:
        random.shuffle(indices)
        # Items that the batch under way already has wait for the next one.
        pending = [*pending, *indices]
        indices_left: list[int] = []
        for index in pending:
            if index in batch:
                indices_left.append(index)
                continue
            batch.append(index)
            if len(batch) == batch_size:
                yield [dataset[i] for i in batch]
                batch = []
        pending = indices_left
