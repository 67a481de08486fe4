"""`agl doctor`: which packages an agent may be written with that we record, and which of them are here."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from agentlightning import instrumentation


def main(argv: Sequence[str]) -> int:
    """Prints the table, and returns the exit code: 1 where a package can't be recorded."""
    parser = argparse.ArgumentParser(
        prog="agl doctor",
        description="Tells which agent frameworks are installed and will be recorded. "
        "With the URL of a model's endpoint instead, tells what that can do.",
    )
    parser.add_argument(
        "--import",
        dest="imports",
        action="store_true",
        help="import and patch every package that is installed, which shows whether it can be recorded",
    )
    imports: bool = parser.parse_args(argv).imports
    if imports:
        instrumentation.instrument_all()
        for library in instrumentation.LIBRARIES:
            try:
                for module in library.modules:
                    import_module(module)
            except ImportError:
                # Not installed, which the table says.
                continue
            except Exception as error:
                sys.stderr.write(f"{library.name} can't be imported: {error!r}\n")
    found = instrumentation.findings()
    sys.stdout.write(f"{found}\n")
    if not imports:
        sys.stdout.write("\nhint: `agl doctor --import` also tries whether they can be recorded\n")
    return int(any(finding.status.startswith("failed") for finding in found))
