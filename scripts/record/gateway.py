"""Our own gateway."""

# needs: agentlightning-rs
# needs: openai

import asyncio
import json

from common import FakeVLLM, converse, save
from openai import OpenAI

import agentlightning as agl


async def main() -> None:
    """Records the conversation."""
    store = agl.InMemoryLightningStore()
    rollout = await store.start_rollout("task")
    with FakeVLLM() as engine:
        model = {"model": "hosted_vllm/fake", "api_base": engine.base_url}
        proxy = agl.LLMProxy(model_list=[{"model_name": "fake", "litellm_params": model}], store=store)
        await proxy.start()
        llm = proxy.as_resource(rollout.rollout_id, rollout.attempt.attempt_id)
        await asyncio.to_thread(converse, OpenAI(base_url=llm.endpoint, api_key="none"))
        spans = list(await store.query_spans(rollout.rollout_id))
        await proxy.stop()
    where = {"rollout_id": "ro", "attempt_id": "at"}
    written = [json.loads(span.model_dump_json()) | where for span in spans]
    save("gateway", written, "agentlightning-rs", "openai")


asyncio.run(main())
