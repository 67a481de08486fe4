#!/usr/bin/env python3
"""Checks, without the network, that every crate we build is under a license that deny.toml allows.

Reads `cargo metadata` and the `[licenses] allow` list of deny.toml. Prints what is wrong and exits with 1, or
prints a count and exits with 0. SPDX expressions are evaluated, with `/` read as OR as crates.io once did.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOKEN = re.compile(r"\(|\)|[^\s()]+")


def allowed_licenses() -> set[str]:
    """The list of deny.toml; read by hand because tomllib is missing on Python 3.10."""
    text = (ROOT / "deny.toml").read_text(encoding="utf-8")
    block = re.search(r"^\[licenses\]\s*^allow = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    if block is None:
        sys.exit("deny.toml has no [licenses] allow list")
    return set(re.findall(r'"([^"]+)"', block.group(1)))


def is_allowed(expression: str, allowed: set[str]) -> bool:
    """Whether an SPDX expression can be met with the allowed licenses."""
    tokens = TOKEN.findall(expression.replace("/", " OR "))

    def disjunction() -> bool:
        value = conjunction()
        while tokens and tokens[0] == "OR":
            tokens.pop(0)
            right = conjunction()
            value = value or right
        return value

    def conjunction() -> bool:
        value = term()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            right = term()
            value = value and right
        return value

    def term() -> bool:
        token = tokens.pop(0)
        if token == "(":
            value = disjunction()
            tokens.pop(0)
            return value
        if tokens and tokens[0] == "WITH":
            tokens.pop(0)
            token = f"{token} WITH {tokens.pop(0)}"
        return token in allowed

    value = disjunction()
    return value and not tokens


def main() -> int:
    allowed = allowed_licenses()
    command = ["cargo", "metadata", "--format-version", "1", "--locked"]
    metadata = json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
    refused = [
        f"{package['name']} {package['version']}: {package['license'] or 'no license given'}"
        for package in metadata["packages"]
        if not (package["license"] and is_allowed(package["license"], allowed))
    ]
    if refused:
        print("licenses that deny.toml does not allow:", *refused, sep="\n  ", file=sys.stderr)
        return 1
    print(f"licenses of {len(metadata['packages'])} crates are allowed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
