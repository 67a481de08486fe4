"""Triplets of prompt, response and reward, one for each call of a model, and the tree they are found in."""

from __future__ import annotations

import json
import logging
import math
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, TypeAdapter

from agentlightning.adapter.base import TraceAdapter
from agentlightning.types import Span, Triplet

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

__all__ = [
    "LlmProxyTraceToTriplet",
    "MissingTokenIdsError",
    "RewardMatchPolicy",
    "TraceToTriplet",
    "TraceToTripletBase",
    "TraceTree",
    "TracerTraceToTriplet",
    "Transition",
]

logger = logging.getLogger(__name__)

_triplets: TypeAdapter[list[Triplet]] = TypeAdapter(list[Triplet])


def as_spans(source: Sequence[Span | ReadableSpan]) -> list[Span]:
    """The spans as a store has them; those of OpenTelemetry itself are of no rollout."""
    # Pydantic tells instances in Python, which asking for the type first spares most spans.
    return [
        span
        if type(span) is Span or isinstance(span, Span)
        else Span.from_opentelemetry(span, "dummy", "dummy", 0)
        for span in source
    ]


def _raising(call: Callable[..., Any], *args: Any) -> Any:
    """What the Rust side answers, its failures as exceptions of ours."""
    try:
        return call(*args)
    except Exception as error:
        from agentlightning import _core
        from agentlightning._native import as_exception

        if isinstance(error, _core.CoreError):
            raise as_exception(*error.args) from None
        raise


class RewardMatchPolicy(str, Enum):
    """Which call a reward goes to."""

    FIRST_SIBLING = "first_sibling"
    """The newest call without one among the reward's elder siblings."""
    FIRST_OCCURRENCE = "first_occurrence"
    """The newest call without one that had ended when the reward was given."""


class MissingTokenIdsError(ValueError):
    """A call whose token ids are not known cannot be trained on."""


class Transition(BaseModel):
    """What the model saw, what it did, and what that earned."""

    state: list[int]
    """The token ids of the prompt."""
    action: list[int]
    """The token ids of the response."""
    response_id: str | None
    """The id that the engine gave to the response."""
    agent_name: str
    """The agent that made the call."""
    reward: float | None
    """What it earned."""

    @classmethod
    def from_triplet(cls, triplet: Triplet) -> Transition:
        """The transition of a triplet.

        Raises:
            MissingTokenIdsError: when the engine's token ids of its prompt or response are not known.
        """
        response_id = triplet.metadata.get("response_id")
        ids: dict[str, list[int]] = {}
        for part, value in (("prompt", triplet.prompt), ("response", triplet.response)):
            found = value.get("token_ids") if isinstance(value, dict) else None
            if not found:
                raise MissingTokenIdsError(
                    f"the call {response_id or 'without a response id'} has no token ids of its {part}: have "
                    "the engine return them (vLLM: return_token_ids), or send calls through the gateway"
                )
            ids[part] = found
        return cls(
            state=ids["prompt"],
            action=ids["response"],
            response_id=response_id,
            agent_name=triplet.metadata.get("agent_name") or "",
            reward=triplet.reward,
        )


class TraceTree:
    """A span and those below it."""

    def __init__(self, id: str, span: Span, children: list[TraceTree] | None = None) -> None:
        self.id = id
        self.span = span
        self.children: list[TraceTree] = children or []

    @property
    def start_time(self) -> float | None:
        """When the span began."""
        return self.span.start_time

    @property
    def end_time(self) -> float | None:
        """When the span ended."""
        return self.span.end_time

    @classmethod
    def from_spans(cls, spans: Sequence[Span]) -> TraceTree:
        """The tree of a trace, whose spans may come in any order.

        A parent that nobody sent becomes a node named `agentlightning.virtual`; several roots come under a
        node `virtual-root`.

        Raises:
            ValueError: for an empty trace, or one that goes in circles.
        """
        from agentlightning import _core

        spans = list(spans)
        root: int
        root, shape = _raising(_core.tree_of_spans, spans)
        nodes: list[TraceTree] = []
        for place, made_up, _ in shape:
            if place is not None:
                span = spans[place]
            else:
                assert made_up is not None, "a node has a span or is made up"
                span_id, name, start, end = made_up
                first = spans[0]
                span = Span.from_attributes(
                    attributes={},
                    rollout_id=first.rollout_id,
                    attempt_id=first.attempt_id,
                    sequence_id=first.sequence_id,
                    trace_id=first.trace_id,
                    span_id=span_id,
                    name=name,
                    start_time=start,
                    end_time=end,
                    resource=first.resource,
                )
                span.start_time, span.end_time = start, end
            nodes.append(cls(span.span_id, span))
        for node, (_, _, children) in zip(nodes, shape, strict=True):
            node.children = [nodes[child] for child in children]
        return nodes[root]

    def add_child(self, child: TraceTree) -> None:
        """Puts a tree below this node, behind the children that are there."""
        self.children.append(child)

    def find_id(self, id: str) -> TraceTree | None:
        """The node of that id in the tree, if there is one."""
        return next((node for node in self._walk() if node.id == id), None)

    def _walk(self) -> Iterator[TraceTree]:
        # Deep traces would be too much for recursion.
        waiting = [self]
        while waiting:
            node = waiting.pop()
            yield node
            waiting.extend(reversed(node.children))

    def traverse(self) -> list[TraceTree]:
        """All nodes, each before its children."""
        return list(self._walk())

    def agent_name(self) -> str | None:
        """The name of the agent that the span stands for; None when it stands for none."""
        from agentlightning import _core

        name: str | None = _raising(_core.agent_of_span, self.span)
        return name

    def _from_leaves(self, make: Callable[[TraceTree, list[Any]], Any]) -> Any:
        """Makes something of every node out of what was made of its children."""
        done: dict[int, Any] = {}
        for node in reversed(self.traverse()):
            done[id(node)] = make(node, [done.pop(id(child)) for child in node.children])
        return done[id(self)]

    def names_tuple(self) -> tuple[str, list[Any]]:
        """The names of the tree: each with the agent's in brackets, and those of its children."""

        def names(node: TraceTree, children: list[Any]) -> tuple[str, list[Any]]:
            agent = node.agent_name()
            return (f"{node.span.name} [{agent}]" if agent is not None else node.span.name, children)

        result: tuple[str, list[Any]] = self._from_leaves(names)
        return result

    def to_json(self) -> dict[str, Any]:
        """The tree as nested dictionaries with the keys `id`, `span` and `children`."""
        result: dict[str, Any] = self._from_leaves(
            lambda node, children: {"id": node.id, "span": node.span.model_dump(), "children": children}
        )
        return result

    def _shape(self) -> tuple[list[TraceTree], list[Span], list[int | None]]:
        """The nodes in pre-order, their spans, and the places of their parents."""
        nodes = self.traverse()
        place = {id(node): number for number, node in enumerate(nodes)}
        parents: list[int | None] = [None] * len(nodes)
        for number, node in enumerate(nodes):
            for child in node.children:
                parents[place[id(child)]] = number
        return nodes, [node.span for node in nodes], parents

    def repair_hierarchy(self) -> None:
        """Finds better parents, by their time, for spans whose recorded parent says nothing.

        Those are the spans directly below a root, a session or a node that nobody sent. An agent's own
        children stay with it.
        """
        from agentlightning import _core

        nodes, spans, parents = self._shape()
        for node, children in zip(nodes, _raising(_core.repaired_children, spans, parents), strict=True):
            node.children = [nodes[child] for child in children]

    def _calls(self, **options: Any) -> list[tuple[TraceTree, str, float | None]]:
        from agentlightning import _core
        from agentlightning._native import encode

        nodes, spans, parents = self._shape()
        calls = _raising(_core.calls_of_tree, spans, parents, encode(options))
        return [(nodes[place], agent, reward) for place, agent, reward in calls]

    def find_llm_calls(
        self,
        llm_call_match: str = r"openai\.chat\.completion",
        agent_match: str | None = None,
        exclude_llm_call_in_reward: bool = True,
    ) -> list[tuple[TraceTree, str]]:
        """The nodes that are calls of a model and count, each with the innermost agent around it."""
        calls = self._calls(
            llm_call_match=llm_call_match,
            agent_match=agent_match,
            exclude_llm_call_in_reward=exclude_llm_call_in_reward,
        )
        return [(node, agent) for node, agent, _ in calls]

    def match_rewards(
        self,
        reward_match: RewardMatchPolicy | str = RewardMatchPolicy.FIRST_OCCURRENCE,
        llm_call_match: str = r"openai\.chat\.completion",
    ) -> dict[str, float | None]:
        """What each call of a model earned, by the id of its node."""
        calls = self._calls(reward_match=RewardMatchPolicy(reward_match).value, llm_call_match=llm_call_match)
        return {node.id: reward for node, _, reward in calls}

    def span_to_triplet(self, span: Span, agent_name: str) -> Triplet:
        """The triplet of a call, without a reward."""
        return span_to_triplet(span, agent_name)

    def extract_prompt_image_urls(self, prompt_raw_content: Any) -> list[str]:
        """The URLs of the images in a prompt: a list of messages, a dictionary of them by number, or one."""
        if isinstance(prompt_raw_content, dict):
            numbered = sorted(
                (int(key), value) for key, value in prompt_raw_content.items() if str(key).isdigit()
            )
            messages = [message for _, message in numbered] if numbered else [prompt_raw_content]
        elif isinstance(prompt_raw_content, list):
            messages = prompt_raw_content
        else:
            return []
        urls: list[str] = []
        for message in messages:
            content = message.get("content") if isinstance(message, dict) else None
            if isinstance(content, str):
                try:
                    content = json.loads(content)
                except ValueError:
                    continue
            for part in content if isinstance(content, list) else ():
                image = part.get("image_url") if isinstance(part, dict) else None
                if isinstance(image, dict) and part.get("type") == "image_url" and image.get("url"):
                    urls.append(image["url"])
        return urls

    def to_trajectory(
        self,
        llm_call_match: str = r"openai\.chat\.completion",
        agent_match: str | None = None,
        exclude_llm_call_in_reward: bool = True,
        dedup_llm_call: bool = True,
        reward_match: RewardMatchPolicy | str = RewardMatchPolicy.FIRST_OCCURRENCE,
        final_reward: float | None = None,
        _skip_empty_token_spans: bool = False,
    ) -> list[Triplet]:
        """The triplets of the tree as it is, in pre-order.

        Args:
            llm_call_match: A regular expression that is found in the names of spans that are calls of a
                model.
            agent_match: A regular expression that is found in the names of the agents whose calls count.
            exclude_llm_call_in_reward: Whether calls made to compute a reward are left out.
            dedup_llm_call: Whether a response that was recorded twice counts once.
            reward_match: Which call a reward goes to.
            final_reward: What the last call's reward becomes, whatever the spans say.
            _skip_empty_token_spans: Whether calls without token ids are left out.
        """
        calls = self._calls(
            llm_call_match=llm_call_match,
            agent_match=agent_match,
            exclude_llm_call_in_reward=exclude_llm_call_in_reward,
            dedup_llm_call=dedup_llm_call,
            reward_match=RewardMatchPolicy(reward_match).value,
            final_reward=final_reward,
            skip_empty_token_spans=_skip_empty_token_spans,
        )
        triplets = []
        for node, agent, reward in calls:
            triplet = self.span_to_triplet(node.span, agent)
            triplets.append(triplet if reward is None else triplet.model_copy(update={"reward": reward}))
        return triplets

    def to_dot(self, interested_span_match: str | None = None) -> str:
        """The tree in Graphviz's language, with only those spans whose names the expression is found in."""
        import re

        pattern = re.compile(interested_span_match) if interested_span_match is not None else None
        nodes = self.traverse()
        number = {id(node): place for place, node in enumerate(nodes)}
        lines = ["digraph trace {", "  node [shape=box, fontname=sans];"]
        # The nearest ancestor that is shown.
        shown: list[tuple[TraceTree, int | None]] = [(self, None)]
        while shown:
            node, above = shown.pop()
            place = number[id(node)]
            if pattern is None or pattern.search(node.span.name):
                agent = node.agent_name()
                label = node.span.name if agent is None else f"{node.span.name}\n[{agent}]"
                lines.append(f"  n{place} [label={json.dumps(label, ensure_ascii=False)}];")
                if above is not None:
                    lines.append(f"  n{above} -> n{place};")
                above = place
            shown.extend((child, above) for child in reversed(node.children))
        return "\n".join([*lines, "}", ""])

    def visualize(self, filename: str, interested_span_match: str | None = None) -> None:
        """Draws the tree into `filename`.png.

        Raises:
            RuntimeError: when Graphviz's `dot` is not installed or fails.
        """
        dot = shutil.which("dot")
        if dot is None:
            raise RuntimeError(
                "Graphviz's dot is needed to draw a trace: install graphviz, or write to_dot() to a file"
            )
        drawn = subprocess.run(
            [dot, "-Tpng", "-o", f"{filename}.png"],
            input=self.to_dot(interested_span_match),
            text=True,
            capture_output=True,
            check=False,
        )
        if drawn.returncode != 0:
            raise RuntimeError(f"dot could not draw the trace: {drawn.stderr.strip()}")

    def __repr__(self) -> str:
        return f"TraceTree(id={self.id!r}, name={self.span.name!r}, children={len(self.children)})"


def span_to_triplet(span: Span, agent_name: str) -> Triplet:
    """The triplet of a call, without a reward."""
    from agentlightning import _core

    return Triplet.model_validate(_raising(_core.triplet_of_span, span, agent_name))


class TraceToTripletBase(TraceAdapter[list[Triplet]]):
    """An adapter that yields triplets."""


class TracerTraceToTriplet(TraceToTripletBase):
    """Reads the triplets out of a trace that a tracer has recorded.

    A subclass may override `span_to_triplet` to change what is made of a call.
    """

    _written_options: tuple[dict[str, Any], bytes] = ({}, b"{}")

    def __init__(
        self,
        repair_hierarchy: bool = True,
        llm_call_match: str = r"openai\.chat\.completion",
        agent_match: str | None = None,
        exclude_llm_call_in_reward: bool = True,
        reward_match: RewardMatchPolicy | str = RewardMatchPolicy.FIRST_OCCURRENCE,
        _skip_empty_token_spans: bool = False,
    ) -> None:
        """Makes an adapter.

        Args:
            repair_hierarchy: Whether spans without a telling parent are put under the span that encloses
                them.
            llm_call_match: A regular expression that is found in the names of spans that are calls of a
                model.
            agent_match: A regular expression that is found in the names of the agents whose calls count; all
                by default.
            exclude_llm_call_in_reward: Whether calls made to compute a reward are left out.
            reward_match: Which call a reward goes to.
            _skip_empty_token_spans: Whether calls without token ids are left out.
        """
        self.repair_hierarchy = repair_hierarchy
        self.llm_call_match = llm_call_match
        self.agent_match = agent_match
        self.exclude_llm_call_in_reward = exclude_llm_call_in_reward
        self.reward_match = reward_match
        self._skip_empty_token_spans = _skip_empty_token_spans

    def span_to_triplet(self, span: Span, agent_name: str) -> Triplet:
        """The triplet of a call, without its reward, which is added afterwards."""
        return span_to_triplet(span, agent_name)

    def adapt(self, source: Sequence[Span | ReadableSpan], /) -> list[Triplet]:
        """The triplets of a trace, in the order of its tree.

        Raises:
            ValueError: for an empty trace, or one that goes in circles.
        """
        if not source:
            raise ValueError("No spans provided: a trace without spans has no triplets.")
        spans = as_spans(source)
        options: dict[str, Any] = {
            "llm_call_match": self.llm_call_match,
            "agent_match": self.agent_match,
            "exclude_llm_call_in_reward": self.exclude_llm_call_in_reward,
            "reward_match": RewardMatchPolicy(self.reward_match).value,
            "skip_empty_token_spans": self._skip_empty_token_spans,
        }
        if type(self).span_to_triplet is TracerTraceToTriplet.span_to_triplet:
            from agentlightning import _core

            options["repair_hierarchy"] = self.repair_hierarchy
            # Writing them out takes as long as reading a small trace does.
            if self._written_options[0] != options:
                from agentlightning._native import encode

                self._written_options = (options, encode(options))
            found = _raising(_core.triplets_of_spans, spans, self._written_options[1])
            return _triplets.validate_python(found)
        # Somebody makes triplets of their own.
        tree = self._tree(spans)
        return [
            self.span_to_triplet(node.span, agent).model_copy(update={"reward": reward})
            for node, agent, reward in tree._calls(**options)
        ]

    def _tree(self, spans: Sequence[Span]) -> TraceTree:
        tree = TraceTree.from_spans(spans)
        if self.repair_hierarchy:
            tree.repair_hierarchy()
        return tree

    def visualize(
        self,
        source: Sequence[Span | ReadableSpan],
        /,
        filename: str = "trace_tree",
        interested_span_match: str | None = None,
    ) -> TraceTree:
        """Draws the tree of a trace into `filename`.png, and returns it.

        Raises:
            RuntimeError: when Graphviz's `dot` is not installed.
        """
        tree = self._tree(as_spans(source))
        tree.visualize(filename, interested_span_match=interested_span_match)
        return tree


TraceToTriplet = TracerTraceToTriplet
"""A shorter name."""


class LlmProxyTraceToTriplet(TraceToTripletBase):
    """Reads the triplets out of what a proxy of models has recorded, in the order of sequence ids.

    A subclass may override how tokens, ids and rewards are found.
    """

    _TOKEN_SPANS = ("raw_gen_ai_request", "litellm_request")

    def _literal_eval_maybe(self, value: Any) -> Any:
        """What a text says that is a Python literal; anything else as it is."""
        if not isinstance(value, str):
            return value
        from agentlightning import _core

        return json.loads(_core.python_value(value))

    def _extract_tokens_from_raw(self, attributes: dict[str, Any]) -> tuple[list[int], list[int]]:
        """The token ids of prompt and response in the attributes of a span `raw_gen_ai_request`."""
        by_key: dict[str, Any] = {}
        for key, value in attributes.items():
            # `llm.{provider}.{key}`; a provider has no dots.
            parts = key.split(".", 2)
            if len(parts) == 3 and parts[0] == "llm":
                by_key[parts[2]] = value
        prompt = self._literal_eval_maybe(by_key.get("prompt_token_ids"))
        responses = self._literal_eval_maybe(by_key.get("response_token_ids"))
        response = responses[0] if isinstance(responses, list) and responses else None
        if not response:
            choices = self._literal_eval_maybe(by_key.get("choices"))
            first = choices[0] if isinstance(choices, list) and choices else None
            response = first.get("token_ids") if isinstance(first, dict) else None
        return _whole_numbers(prompt), _whole_numbers(response)

    def _request_id_from_attrs(self, attributes: dict[str, Any]) -> str | None:
        """The id of a response."""
        keys = (
            "gen_ai.response.id",
            *(key for key in attributes if key.startswith("llm.") and key.endswith(".id")),
        )
        return next((str(attributes[key]) for key in keys if attributes.get(key)), None)

    def _maybe_reward_value(self, span: Span) -> float | None:
        """The reward that a span gives; None when it gives none that can be learned from."""
        from agentlightning.emitter.reward import get_reward_value

        value = get_reward_value(span)
        if value is None or _is_finite(value):
            return value
        logger.warning("the reward of span %s counts as none: %r is no finite number", span.span_id, value)
        return None

    def adapt(self, source: Sequence[Span | ReadableSpan], /) -> list[Triplet]:
        """The triplets of a trace; none of an empty one."""
        spans = sorted(as_spans(source), key=lambda span: (span.sequence_id, span.start_time or 0.0))
        calls: list[tuple[int, Triplet]] = []
        seen: set[str] = set()
        for span in spans:
            if span.name == "raw_gen_ai_request":
                prompt, response = self._extract_tokens_from_raw(span.attributes)
            elif span.name in self._TOKEN_SPANS or span.name == "openai.chat.completion":
                prompt = _whole_numbers(span.attributes.get("prompt_token_ids"))
                response = _whole_numbers(span.attributes.get("response_token_ids"))
            else:
                continue
            if not prompt or not response:
                continue
            response_id = self._request_id_from_attrs(span.attributes)
            if response_id is not None and response_id in seen:
                continue
            seen.add(response_id or "")
            triplet = Triplet(
                prompt={"token_ids": prompt},
                response={"token_ids": response},
                reward=None,
                metadata={"response_id": response_id},
            )
            calls.append((span.sequence_id, triplet))
        for span in spans:
            reward = self._maybe_reward_value(span)
            if reward is None:
                continue
            waiting = (
                triplet
                for sequence_id, triplet in reversed(calls)
                if sequence_id < span.sequence_id and triplet.reward is None
            )
            call = next(waiting, None)
            if call is None:
                logger.warning("no call came before the reward of span %s: it is passed over", span.span_id)
            else:
                call.reward = reward
        return [triplet for _, triplet in calls]


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except TypeError:
        return False


def _whole_numbers(value: Any) -> list[int]:
    """A list of whole numbers; an empty one of anything else."""
    if not isinstance(value, (list, tuple)) or not all(type(item) is int for item in value):
        return []
    return list(value)
