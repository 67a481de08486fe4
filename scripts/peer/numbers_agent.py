"""An agent for the local runner of agl-controller 1.0: gets a number, and tells what it is worth."""

from __future__ import annotations

import os

from checks import call


class NumbersAgent:
    """Posts a reward of a tenth of its number; numbers below 0 are too much for it."""

    def run(self) -> None:
        """Called once in a process of its own."""
        number = int(os.environ["NUMBER"])
        if number < 0:
            raise ValueError("negative numbers are not for me")
        reward = {"event_type": "reward", "data": {"value": number / 10, "reason": os.environ["REASON"]}}
        status, answer = call("POST", os.environ["AGL_EVENT_URL"], reward)
        if status not in (200, 201):
            raise RuntimeError(f"the reward was answered {status}: {answer}")
