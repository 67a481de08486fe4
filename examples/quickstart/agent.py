"""A quiz agent as somebody would write it with the plain OpenAI SDK. It knows nothing of Agent Lightning.

It asks the model, and when the reply rambles on it asks once more for the bare answer.
"""

from __future__ import annotations

from openai import OpenAI

SYSTEM = "You are a helpful assistant. Answer the question in a few words."


def ask(question: str, *, base_url: str, model: str, api_key: str = "not-needed") -> str:
    """Answers `question` with the model behind `base_url`."""
    client = OpenAI(base_url=base_url, api_key=api_key)
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    reply = client.chat.completions.create(model=model, messages=messages, max_tokens=32, temperature=0.2)
    answer = reply.choices[0].message.content or ""
    if reply.choices[0].finish_reason == "length":
        messages += [
            {"role": "assistant", "content": answer},
            {"role": "user", "content": "Say only the answer, in one or two words."},
        ]
        reply = client.chat.completions.create(model=model, messages=messages, max_tokens=12, temperature=0.2)
        answer = reply.choices[0].message.content or ""
    return answer
