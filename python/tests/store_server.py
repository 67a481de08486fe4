"""`agl store` as a process of its own."""

from __future__ import annotations

import re
import signal
import subprocess
import sys


class StoreServer:
    """`agl store`, which can be killed and started again on the same port."""

    def __init__(self, *options: str) -> None:
        self._options = options
        self._process: subprocess.Popen[str] | None = None
        self.port = 0
        self.grpc_port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "agentlightning.cli", "store", "--port", str(self.port)]
        self._process = subprocess.Popen([*command, *self._options], stdout=subprocess.PIPE, text=True)
        self.port = self._read_port()
        if "--otlp-grpc" in self._options:
            self.grpc_port = self._read_port()

    def _read_port(self) -> int:
        """The port in the next line that the server prints."""
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        match = re.search(r"127\.0\.0\.1:(\d+)", line)
        assert match, f"the server printed {line!r}"
        return int(match.group(1))

    def stop(self, with_signal: signal.Signals) -> int:
        assert self._process is not None
        self._process.send_signal(with_signal)
        exit_code = self._process.wait(timeout=20)
        assert self._process.stdout is not None
        self._process.stdout.close()
        return exit_code
