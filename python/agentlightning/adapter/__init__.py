"""Reading spans into what algorithms learn from."""

from agentlightning.adapter.base import Adapter, OtelTraceAdapter, TraceAdapter
from agentlightning.adapter.triplet import (
    RewardMatchPolicy,
    TracerTraceToTriplet,
    TraceToTriplet,
    TraceToTripletBase,
)

__all__ = [
    "Adapter",
    "OtelTraceAdapter",
    "RewardMatchPolicy",
    "TraceAdapter",
    "TraceToTriplet",
    "TraceToTripletBase",
    "TracerTraceToTriplet",
]
