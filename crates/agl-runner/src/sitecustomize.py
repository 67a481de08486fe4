"""What `agl run --instrument` has every Python interpreter run when it starts."""

import os
import sys


def _run_that_of_others(here):
    """Runs the `sitecustomize` that would have been found without this one."""
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec

    spec = PathFinder.find_spec("sitecustomize", [folder for folder in sys.path if folder != here])
    if spec is not None and spec.loader is not None:
        module = module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


def _record():
    try:
        from agentlightning.instrumentation.program import record

        record()
    except Exception as error:
        print(
            f"agl run --instrument: what happens inside of {sys.executable} is not recorded, for the package "
            f"agentlightning-rs cannot be used there ({type(error).__name__}: {error}). "
            f"Install it: {sys.executable} -m pip install agentlightning-rs",
            file=sys.stderr,
        )


_here = os.path.dirname(os.path.abspath(__file__))
try:
    _run_that_of_others(_here)
finally:
    # What the program imports is what it would import otherwise.
    sys.path[:] = [_folder for _folder in sys.path if _folder != _here]
    _record()
