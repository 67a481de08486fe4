"""Writes the recorded spans of each fixture, as a list, into the folder that the fuzzer begins with."""

import json
import sys
from pathlib import Path

fixtures, corpus = map(Path, sys.argv[1:])
for path in fixtures.glob("*.json"):
    spans = json.loads(path.read_text(encoding="utf-8"))["spans"]
    (corpus / path.name).write_text(json.dumps(spans), encoding="utf-8")
