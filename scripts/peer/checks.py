"""Asking a server, and counting what holds and what does not; shared by the scripts beside it."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from typing import Any, NoReturn


class Checks:
    """Prints every check that fails, and at the end how many there were."""

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.passed = 0
        self.failed = 0

    def equal(self, what: str, found: object, wanted: object) -> None:
        """Counts a check; says what differs."""
        if found == wanted:
            self.passed += 1
        else:
            self.failed += 1
            print(f"FAILED {self.subject}: {what}: found {found!r}, wanted {wanted!r}", flush=True)

    def exit(self) -> NoReturn:
        """Ends the script, with 1 when something failed or nothing was checked."""
        print(f"{self.subject}: {self.passed} passed, {self.failed} failed", flush=True)
        sys.exit(0 if self.passed and not self.failed else 1)


def call(method: str, url: str, body: object = None) -> tuple[int, Any]:
    """Makes one HTTP request; returns the status and the JSON that came back, if any."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            status, text = response.status, response.read()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read()
    return status, json.loads(text) if text else None
