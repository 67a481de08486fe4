"""`agl prometheus`: shows the figures that several processes count together. The store's server needs none of
this: it shows its own at `/v1/prometheus/`."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import FrameType
from typing import Any

__all__ = ["main"]

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until Ctrl+C or SIGTERM, and returns the exit code."""
    parser = argparse.ArgumentParser(
        "agl prometheus",
        description="Shows the figures in the folder PROMETHEUS_MULTIPROC_DIR, for Prometheus to fetch.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port", type=int, default=4748, help="port to listen on; 0 picks a free one (default: %(default)s)"
    )
    parser.add_argument(
        "--metrics-path", default="/v1/prometheus", help="where the figures are (default: %(default)s)"
    )
    parser.add_argument(
        "--log-level", default="INFO", type=str.upper, choices=["DEBUG", "INFO", "WARNING", "ERROR"]
    )
    parser.add_argument("--access-log", action="store_true", help="log every request")
    options = parser.parse_args(argv)
    if not options.metrics_path.startswith("/") or not options.metrics_path.strip("/"):
        return _complain("--metrics-path must be a path such as /v1/prometheus")
    if not (folder := os.environ.get("PROMETHEUS_MULTIPROC_DIR")):
        return _complain("PROMETHEUS_MULTIPROC_DIR must name the folder that the processes write into")
    os.makedirs(folder, exist_ok=True)
    from agentlightning.logging import setup
    from agentlightning.utils.metrics import get_prometheus_registry

    setup(options.log_level)
    try:
        registry = get_prometheus_registry()
        server = ThreadingHTTPServer((options.host, options.port), _handler(registry, options))
    except (ImportError, OSError) as error:
        return _complain(str(error))

    def end(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    host, port = server.server_address[:2]
    print(f"metrics at http://{host!s}:{port}{options.metrics_path}", flush=True)  # noqa: T201
    with server, contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
    return 0


def _handler(registry: Any, options: argparse.Namespace) -> type[BaseHTTPRequestHandler]:
    from prometheus_client.exposition import choose_encoder

    path = "/" + options.metrics_path.strip("/")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.path.partition("?")[0].rstrip("/")
            if asked == path:
                encode, kind = choose_encoder(self.headers.get("Accept", ""))
                self._reply(200, kind, encode(registry))
            elif asked == "/health":
                self._reply(200, "application/json", json.dumps({"status": "ok"}).encode())
            else:
                self._reply(404, "text/plain", f"the figures are at {path}\n".encode())

        def _reply(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            logger.log(logging.INFO if options.access_log else logging.DEBUG, format, *args)

    return Handler


def _complain(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)  # noqa: T201
    return 1
