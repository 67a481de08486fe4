"""`agl doctor`: which packages an agent may be written with that we record, and which of them are here."""

from __future__ import annotations

import sys
from importlib import import_module

from agentlightning import instrumentation


def doctor(*, imports: bool = False) -> int:
    """Prints the table, and returns the exit code: 1 where a package can't be recorded.

    With `imports` every package that is installed is imported and patched, which shows whether it can be.
    """
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
