"""The algorithm interface."""

from __future__ import annotations

import inspect
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentlightning.adapter import TraceAdapter
    from agentlightning.store.base import LightningStore
    from agentlightning.trainer.trainer import Trainer
    from agentlightning.types import Dataset, NamedResources


class Algorithm:
    """Writes tasks and resources into the store, and learns from what comes back: override `run`."""

    # Class-level defaults, so that subclasses need not call super().__init__().
    _trainer_ref: weakref.ReferenceType[Trainer] | None = None
    _llm_proxy_ref: weakref.ReferenceType[Any] | None = None
    _adapter_ref: weakref.ReferenceType[TraceAdapter[Any]] | None = None
    _store: LightningStore | None = None
    _initial_resources: NamedResources | None = None

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        for name in ("_trainer_ref", "_llm_proxy_ref", "_adapter_ref", "_store"):
            state.pop(name, None)
        return state

    def is_async(self) -> bool:
        """Whether `run` is asynchronous."""
        return inspect.iscoroutinefunction(self.run)

    def set_trainer(self, trainer: Trainer) -> None:
        """Tells the algorithm its trainer; the reference is weak."""
        self._trainer_ref = weakref.ref(trainer)

    def get_trainer(self) -> Trainer:
        """The trainer.

        Raises:
            ValueError: if there is none, or it is gone.
        """
        if self._trainer_ref is None:
            raise ValueError("Trainer has not been set for this algorithm.")
        trainer = self._trainer_ref()
        if trainer is None:
            raise ValueError("Trainer reference is no longer valid (object has been garbage collected).")
        return trainer

    @property
    def trainer(self) -> Trainer:
        """The trainer; see `get_trainer`."""
        return self.get_trainer()

    def set_llm_proxy(self, llm_proxy: Any | None) -> None:
        """Tells the algorithm its model gateway, or that it has none; the reference is weak."""
        self._llm_proxy_ref = None if llm_proxy is None else weakref.ref(llm_proxy)

    def get_llm_proxy(self) -> Any | None:
        """The model gateway, if there is one.

        Raises:
            ValueError: if it is gone.
        """
        if self._llm_proxy_ref is None:
            return None
        llm_proxy = self._llm_proxy_ref()
        if llm_proxy is None:
            raise ValueError("LLM proxy reference is no longer valid (object has been garbage collected).")
        return llm_proxy

    @property
    def llm_proxy(self) -> Any | None:
        """The model gateway; see `get_llm_proxy`."""
        return self.get_llm_proxy()

    def set_adapter(self, adapter: TraceAdapter[Any]) -> None:
        """Tells the algorithm its adapter; the reference is weak, so the caller keeps the adapter alive."""
        self._adapter_ref = weakref.ref(adapter)

    def get_adapter(self) -> TraceAdapter[Any]:
        """The adapter.

        Raises:
            ValueError: if there is none, or it is gone.
        """
        if self._adapter_ref is None:
            raise ValueError("Adapter has not been set for this algorithm.")
        adapter = self._adapter_ref()
        if adapter is None:
            raise ValueError("Adapter reference is no longer valid (object has been garbage collected).")
        return adapter

    @property
    def adapter(self) -> TraceAdapter[Any]:
        """The adapter; see `get_adapter`."""
        return self.get_adapter()

    def set_store(self, store: LightningStore) -> None:
        """Tells the algorithm its store."""
        self._store = store

    def get_store(self) -> LightningStore:
        """The store.

        Raises:
            ValueError: if there is none.
        """
        if self._store is None:
            raise ValueError("Store has not been set for this algorithm.")
        return self._store

    @property
    def store(self) -> LightningStore:
        """The store; see `get_store`."""
        return self.get_store()

    @store.setter
    def store(self, store: LightningStore) -> None:
        self.set_store(store)

    def set_initial_resources(self, resources: NamedResources) -> None:
        """Tells the algorithm which resources to start from."""
        self._initial_resources = resources

    def get_initial_resources(self) -> NamedResources | None:
        """The resources to start from, if any were given."""
        return self._initial_resources

    @property
    def initial_resources(self) -> NamedResources | None:
        """The resources to start from; see `get_initial_resources`."""
        return self.get_initial_resources()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See `run`."""
        return self.run(*args, **kwargs)

    def run(self, train_dataset: Dataset[Any] | None = None, val_dataset: Dataset[Any] | None = None) -> Any:
        """Runs the algorithm. May be overridden by an async method."""
        raise NotImplementedError("Algorithms must implement `run`.")

    def get_client(self) -> Any:
        """Of the versions before 0.3; there is no such client any more."""
        raise NotImplementedError("This algorithm has no client.")
