"""Whether an edited prompt can still be filled in by the agent that fills in the one before."""

from __future__ import annotations

import re
from string import Formatter

from agentlightning.types import PromptTemplate

_EXPRESSION = re.compile(r"\{\{\s*(.*?)\s*\}\}", re.DOTALL)


def placeholders(template: PromptTemplate) -> set[str]:
    """The placeholders of a template as they are written, such as `{task}` or `{score:.2f}`; of engines other
    than `f-string` the expressions in double braces.

    Raises:
        ValueError: for an f-string with a brace that belongs to no placeholder.
    """
    if template.engine != "f-string":
        return {f"{{{{ {expression} }}}}" for expression in _EXPRESSION.findall(template.template)}
    found: set[str] = set()
    for _, name, spec, conversion in Formatter().parse(template.template):
        if name is not None:
            root = re.split(r"[.\[]", name, maxsplit=1)[0]
            if root and not root.isidentifier() and not root.isdecimal():
                raise ValueError(f"nothing can have the name {root!r}")
            found.add(f"{{{name}{f'!{conversion}' if conversion else ''}{f':{spec}' if spec else ''}}}")
    return found


def complaint(parent: PromptTemplate, text: str) -> str | None:
    """Why `text` can't take the place of `parent`, for whoever wrote it; None if it can.

    Nothing is asked of it where the parent itself is not as its engine wants it.
    """
    try:
        wanted = placeholders(parent)
    except ValueError:
        return None
    try:
        found = placeholders(PromptTemplate(template=text, engine=parent.engine))
    except ValueError as error:
        return f"it has a stray brace ({error}); braces that are meant literally have to be doubled"
    parts = []
    if lost := sorted(wanted - found):
        parts.append(f"it has lost {', '.join(lost)}")
    if invented := sorted(found - wanted):
        parts.append(f"it has invented {', '.join(invented)}")
    return " and ".join(parts) or None
