"""0.3's algorithm over verl on Ray: its configuration, and a refusal to run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from agentlightning.algorithm.base import Algorithm

if TYPE_CHECKING:
    from agentlightning.client import AgentLightningClient
    from agentlightning.types import Dataset

__all__ = ["OVERRIDES", "VERL", "Config", "VERLNotSupportedError"]

OVERRIDES: dict[str, Any] = {
    "agentlightning": {
        "port": 9999,
        "trace_aggregator": {
            "level": "transition",
            "trajectory_max_prompt_length": 2048,
            "trajectory_max_response_length": 8192,
            "debug": False,
            "mismatch_log_dir": "./mismatch_cases",
        },
    },
    "data": {"filter_overlong_prompts": False},
    "actor_rollout_ref": {
        "rollout": {
            "mode": "async",
            "agent": {
                "custom_async_server": {
                    "path": "pkg://agentlightning.verl.async_server",
                    "name": "PatchedvLLMServer",
                }
            },
        }
    },
}
"""What 0.3 sets on top of verl's own configuration."""


class VERLNotSupportedError(RuntimeError):
    """verl is not driven from here; the message says what to use instead."""

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(
            f"{what} can't be used: this package does not drive verl on Ray with vLLM yet. Roll out with "
            "Trainer and LLMProxy and hand the rows of training_arrays() to a trainer of your own "
            "(docs/training-data.md, examples/remote_trainer), or run agentlightning 1.0's verl trainer over "
            "our server, which answers its requests (docs/v1.md)"
        )

    def __reduce__(self) -> tuple[type[VERLNotSupportedError], tuple[str]]:
        return (type(self), (self.what,))


class Config(dict[str, Any]):
    """A dict of dicts whose items are attributes, too: `config.data.train_batch_size`."""

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        """Copies `values`, with a `Config` in place of every mapping in it."""
        super().__init__()
        for key, value in (values or {}).items():
            self[key] = value

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, _configured(value))

    def __getattr__(self, key: str) -> Any:
        try:
            return self[key]
        except KeyError:
            raise AttributeError(f"the configuration has no {key!r}, only {', '.join(self)}") from None

    def __setattr__(self, key: str, value: Any) -> None:
        self[key] = value

    def merged(self, changes: Mapping[str, Any]) -> Config:
        """A copy in which the values of `changes` stand in place of those here, key by key to any depth."""
        merged = Config(self)
        for key, value in changes.items():
            mine = merged.get(key)
            merged[key] = (
                mine.merged(value) if isinstance(mine, Config) and isinstance(value, Mapping) else value
            )
        return merged


def _configured(value: Any) -> Any:
    if isinstance(value, Mapping):
        return Config(value)
    if isinstance(value, (list, tuple)):
        return [_configured(item) for item in value]
    return value


class VERL(Algorithm):
    """0.3's algorithm over verl: it can be made and configured, so that scripts load; it can't be run.

    `config` is what 0.3 sets for verl (`OVERRIDES`) with one's own values in it. verl's own defaults, which
    0.3 takes from an installed verl by way of hydra, are not.
    """

    def __init__(self, config: Mapping[str, Any], trainer_cls: Any = None, daemon_cls: Any = None) -> None:
        """Merges a configuration of verl, in which any key may be new.

        Args:
            config: The configuration, as nested dicts.
            trainer_cls: Kept, and of no use here.
            daemon_cls: Kept, and of no use here.
        """
        if not isinstance(config, Mapping):
            raise TypeError(f"config must be a dict of verl's configuration, not {type(config).__name__}")
        self.config = Config(OVERRIDES).merged(config)
        self.trainer_cls = trainer_cls
        self.daemon_cls = daemon_cls

    def run(self, train_dataset: Dataset[Any] | None = None, val_dataset: Dataset[Any] | None = None) -> None:
        """Refuses.

        Raises:
            VERLNotSupportedError: always, with what to use instead.
        """
        raise VERLNotSupportedError("agl.VERL")

    def get_client(self) -> AgentLightningClient:
        """A client of the legacy server on `config.agentlightning.port`. Deprecated, like the client."""
        from agentlightning.client import AgentLightningClient

        return AgentLightningClient(endpoint=f"http://localhost:{self.config.agentlightning.port}")
