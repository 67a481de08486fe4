"""The client of the legacy server: what agents fetched tasks with before there was a store. Deprecated."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Union

from agentlightning.store.errors import StoreError, StoreUnavailableError
from agentlightning.types import (
    NamedResources,
    ResourcesUpdate,
    RolloutLegacy,
    Task,
    TaskIfAny,
    TaskInput,
)

__all__ = ["AgentLightningClient", "DevTaskLoader"]

logger = logging.getLogger(__name__)

_RETRY_DELAYS = (0.5, 1.0, 2.0)
"""Seconds before a call that is not a poll is tried again while the server can't be reached."""


class AgentLightningClient:
    """Fetches tasks and resources from an `AgentLightningServer`, and brings back results. Deprecated: use a
    store, `LightningStoreClient`.

    Each method has a twin for event loops, with the suffix `_async`. Other than 0.3's, it tells an outage
    (`StoreUnavailableError`) from an empty answer.
    """

    def __init__(self, endpoint: str, poll_interval: float = 5.0, timeout: float = 10.0) -> None:
        """Makes a client.

        Args:
            endpoint: The server's URL.
            poll_interval: Seconds between two looks for a task.
            timeout: Seconds that the server may take for an answer.
        """
        warnings.warn(
            "AgentLightningClient is deprecated. Use LightningStoreClient and LitAgentRunner.",
            DeprecationWarning,
            stacklevel=2,
        )
        if not endpoint.startswith(("http://", "https://")):
            raise ValueError(f"endpoint must start with http:// or https://, not {endpoint!r}")
        self.endpoint = endpoint.rstrip("/")
        self.poll_interval = poll_interval
        self.timeout = timeout
        self.task_count = 0
        """How many tasks have been fetched."""
        self._resources: dict[str, ResourcesUpdate] = {}

    # Tasks

    def poll_next_task(self) -> Task | None:
        """Waits for a task, however long, through outages too."""
        while True:
            task = self._try_for_task()
            if task is not None:
                return task
            time.sleep(self.poll_interval)

    async def poll_next_task_async(self) -> Task | None:
        """Waits for a task, however long, through outages too."""
        while True:
            task = await asyncio.to_thread(self._try_for_task)
            if task is not None:
                return task
            await asyncio.sleep(self.poll_interval)

    def _try_for_task(self) -> Task | None:
        try:
            answer = self._request("GET", "/task")
        except StoreUnavailableError as error:
            logger.warning("No tasks for now: %s", error)
            return None
        found = TaskIfAny.model_validate(answer)
        if not found.is_available or found.task is None:
            return None
        self.task_count += 1
        return found.task

    # Resources

    def get_resources_by_id(self, resource_id: str) -> ResourcesUpdate | None:
        """The resources of this id, or None if the server knows none; asked for once.

        Raises:
            StoreUnavailableError: if the server can't be reached.
        """
        if resource_id not in self._resources:
            found = self._get_resources(resource_id)
            if found is None:
                return None
            self._resources[resource_id] = found
        return self._resources[resource_id]

    async def get_resources_by_id_async(self, resource_id: str) -> ResourcesUpdate | None:
        """See `get_resources_by_id`."""
        return await asyncio.to_thread(self.get_resources_by_id, resource_id)

    def get_latest_resources(self) -> ResourcesUpdate | None:
        """The latest resources, or None if there are none.

        Raises:
            StoreUnavailableError: if the server can't be reached.
        """
        found = self._get_resources("latest")
        if found is not None:
            self._resources[found.resources_id] = found
        return found

    async def get_latest_resources_async(self) -> ResourcesUpdate | None:
        """See `get_latest_resources`."""
        return await asyncio.to_thread(self.get_latest_resources)

    def _get_resources(self, name: str) -> ResourcesUpdate | None:
        answer = self._persistently(lambda: self._request("GET", f"/resources/{name}"))
        return None if answer is None else ResourcesUpdate.model_validate(answer)

    # Results

    def post_rollout(self, rollout: RolloutLegacy) -> dict[str, Any] | None:
        """Brings back the result of a task, and returns the server's answer.

        Raises:
            StoreUnavailableError: if the server can't be reached.
            StoreError: if the server does not take it.
        """
        body = rollout.model_dump_json().encode()
        answer = self._persistently(lambda: self._request("POST", "/rollout", body))
        return dict(answer)

    async def post_rollout_async(self, rollout: RolloutLegacy) -> dict[str, Any] | None:
        """See `post_rollout`."""
        return await asyncio.to_thread(self.post_rollout, rollout)

    # HTTP

    def _persistently(self, request: Callable[[], Any]) -> Any:
        for delay in _RETRY_DELAYS:
            try:
                return request()
            except StoreUnavailableError as error:
                logger.warning("Trying again in %s s: %s", delay, error)
                time.sleep(delay)
        return request()

    def _request(self, method: str, path: str, body: bytes | None = None) -> Any:
        """The JSON of an answer; None where there are no such resources."""
        headers = {"X-AgentLightning-Client": "true", "Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        url = self.endpoint + path
        request = urllib.request.Request(url, data=body, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                detail = error.read(1000).decode("utf-8", "replace")
            if error.code == 404 and path.startswith("/resources/"):
                return None
            if error.code >= 500 or error.code == 408:
                raise StoreUnavailableError(f"{url} answered {error.code}: {detail}") from error
            raise StoreError(f"{url} answered {error.code}: {detail}") from error
        except (OSError, http.client.HTTPException) as error:
            raise StoreUnavailableError(f"{url} can't be reached: {error}") from error
        except ValueError as error:
            raise StoreError(f"{url} did not answer with JSON: {error}") from error


class DevTaskLoader(AgentLightningClient):
    """Stands in for a server while an agent is developed: hands out these tasks, round and round, and keeps
    the results in `rollouts`. Deprecated: use `Trainer.dev`."""

    def __init__(
        self,
        tasks: Sequence[Union[TaskInput, Task]],
        resources: NamedResources | ResourcesUpdate,
        **kwargs: Any,
    ) -> None:
        """Makes a loader.

        Args:
            tasks: The tasks, or what goes into them.
            resources: What agents get with every task.
            kwargs: Further arguments of `AgentLightningClient`.

        Raises:
            ValueError: without tasks.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            super().__init__("http://localhost", **kwargs)
        warnings.warn("DevTaskLoader is deprecated. Use Trainer.dev().", DeprecationWarning, stacklevel=2)
        if not tasks:
            raise ValueError("DevTaskLoader requires at least one task to be provided.")
        self._tasks = list(tasks)
        self._update = resources if isinstance(resources, ResourcesUpdate) else _local_resources(resources)
        self._rollouts: list[RolloutLegacy] = []

    @property
    def rollouts(self) -> list[RolloutLegacy]:
        """The results so far."""
        return self._rollouts

    def _try_for_task(self) -> Task | None:
        index = self.task_count % len(self._tasks)
        self.task_count += 1
        task = self._tasks[index]
        if isinstance(task, Task):
            return task
        now = time.time()
        return Task(
            rollout_id=f"local_task_{index + 1:03d}",
            input=task,
            resources_id=self._update.resources_id,
            create_time=now,
            last_claim_time=now,
            num_claims=1,
        )

    def _get_resources(self, name: str) -> ResourcesUpdate | None:
        if name not in ("latest", self._update.resources_id):
            raise ValueError(
                f"there are no resources {name!r}; this loader has {self._update.resources_id!r} only"
            )
        return self._update

    def post_rollout(self, rollout: RolloutLegacy) -> dict[str, Any]:
        """Keeps the result."""
        self._rollouts.append(rollout)
        return {"status": "received", "rollout_id": rollout.rollout_id}

    def __repr__(self) -> str:
        return f"DevTaskLoader({len(self._tasks)} tasks, resources {self._update.resources_id!r})"


def _local_resources(resources: NamedResources) -> ResourcesUpdate:
    now = time.time()
    return ResourcesUpdate(
        resources_id="local", create_time=now, update_time=now, version=1, resources=dict(resources)
    )
