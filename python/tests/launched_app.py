"""An ASGI application that says who answers."""

from __future__ import annotations

import json
import os
from typing import Any


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
    healthy = scope["path"] != "/sick"
    body = json.dumps({"pid": os.getpid(), "entered": os.environ.get("AGL_TEST_ENTERED")}).encode()
    await send({"type": "http.response.start", "status": 200 if healthy else 503, "headers": []})
    await send({"type": "http.response.body", "body": body})
