"""`VERL`: the name and the configuration of 0.3's algorithm over verl, which is not driven from here yet."""

from agentlightning.algorithm.verl.interface import VERL, Config, VERLNotSupportedError

__all__ = ["VERL", "Config", "VERLNotSupportedError"]
