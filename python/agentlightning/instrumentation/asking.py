"""Which model servers are asked for token ids and log-probabilities, beyond what the agent asks for.

Our own gateway is (an active `ProxyLLM`, or an address that names a rollout), and so are vLLM and others that
say so under `GET /models`. Nobody else is ever asked.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from typing import NamedTuple
from urllib.parse import urlsplit

from agentlightning.tracer.resources import active_resources
from agentlightning.types import ProxyLLM

logger = logging.getLogger(__name__)

TOKEN_ID_SERVERS = frozenset({"vllm", "agentlightning", "agent-lightning", "agl"})
"""What servers that know `return_token_ids` call themselves in the `owned_by` of their models."""
REFUSALS = frozenset({400, 422, 500, 501})
"""Answers by which a server may refuse what we ask for rather than what the agent does."""
# Servers that are known not to, and are not to be bothered.
_FOREIGN_HOSTS = (
    ".openai.com",
    ".azure.com",
    ".anthropic.com",
    ".googleapis.com",
    ".openrouter.ai",
    ".groq.com",
)
_PROBE_SECONDS = 2.0
_PROBE_AGAIN_SECONDS = 30.0
"""How long a server that gave no definite answer is left alone: one that hangs must not slow every call."""
# A server that answers so is there and well, and has no list of models for us.
_NO_MODELS = frozenset({401, 403, 404, 405})
_CREDENTIALS = ("authorization", "x-api-key", "api-key")
_ATTEMPT = re.compile(r"/rollout/[^/]+/attempt/[^/]+")


class _Verdict(NamedTuple):
    """What is known of a server: whether it knows token ids, and until when (`time.monotonic`) that holds."""

    knows: bool
    until: float


_lock = threading.Lock()
_probes: dict[str, _Verdict] = {}
_refused: set[tuple[str, str]] = set()


def known(base_url: str, model: str) -> bool | None:
    """Whether to ask the server at `base_url` (without a trailing slash) for the token ids of a model; None
    when the server itself is to be asked first, with `probe`."""
    with _lock:
        if (base_url, model) in _refused:
            return False
    if _proxied(base_url):
        return True
    host = urlsplit(base_url).hostname or ""
    if any(f".{host}".endswith(foreign) for foreign in _FOREIGN_HOSTS):
        return False
    with _lock:
        verdict = _probes.get(base_url)
    return None if verdict is None or time.monotonic() >= verdict.until else verdict.knows


def names_attempt(base_url: str) -> bool:
    """Whether this is an attempt's address at a gateway, which asks for token ids by itself and shows them to
    the agent."""
    return _ATTEMPT.search(base_url) is not None


def _proxied(base_url: str) -> bool:
    """Whether this is the address of a gateway: among the active resources, or one that names an attempt."""
    if names_attempt(base_url):
        return True
    for resource in (active_resources.get() or {}).values():
        if isinstance(resource, ProxyLLM):
            root = resource.get_base_url(None, None).rstrip("/").removesuffix("/v1")
            if base_url == root or base_url.startswith(root + "/"):
                return True
    return False


def probe(base_url: str, headers: Mapping[str, str]) -> bool:
    """Asks a server whether it is one that knows token ids: once, if the answer is definite.

    `headers` are those of the agent's own request, whose key the question needs, too.
    """
    try:
        credentials = {name: headers[name] for name in _CREDENTIALS if name in headers}
        request = urllib.request.Request(f"{base_url}/models", headers=credentials)
        with urllib.request.urlopen(request, timeout=_PROBE_SECONDS) as response:
            models = json.loads(response.read(1_000_000)).get("data") or []
        owners = sorted({str(model.get("owned_by", "")).lower() for model in models})
    except urllib.error.HTTPError as error:
        error.close()
        return _judge(base_url, f"it answers HTTP {error.code}", definite=error.code in _NO_MODELS)
    except (OSError, HTTPException, ValueError, TypeError, AttributeError) as error:
        # It may only be down for now.
        return _judge(base_url, f"it can't be asked: {error!r}", definite=False)
    if TOKEN_ID_SERVERS.isdisjoint(owners):
        return _judge(base_url, f"its models are owned by {owners}", definite=True)
    with _lock:
        _probes[base_url] = _Verdict(True, math.inf)
    return True


async def probe_async(base_url: str, headers: Mapping[str, str]) -> bool:
    """`probe`, off the event loop; False under a loop that is not asyncio's."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return False
    return await loop.run_in_executor(None, probe, base_url, headers)


def _judge(base_url: str, reason: str, *, definite: bool) -> bool:
    """Notes that a server does not know token ids, for good or for now, and says so the first time."""
    until = math.inf if definite else time.monotonic() + _PROBE_AGAIN_SECONDS
    with _lock:
        previous = _probes.get(base_url)
        _probes[base_url] = _Verdict(False, until)
    if previous is None or (definite and previous.until != math.inf):
        again = "" if definite else f"; it is asked again after {_PROBE_AGAIN_SECONDS:.0f} seconds"
        logger.info("No token ids are asked for at %s: %s%s.", base_url, reason, again)
    return False


def refused(base_url: str, model: str, status: int) -> None:
    """Notes that a server takes the agent's request for a model as it is, and not with what we ask for."""
    with _lock:
        if (base_url, model) in _refused:
            return
        _refused.add((base_url, model))
    logger.info("No token ids of %s are asked for at %s: it refused with HTTP %d.", model, base_url, status)


def forget_probes() -> None:
    """Forgets which servers know token ids."""
    with _lock:
        _probes.clear()
        _refused.clear()
