"""Has our exports read by those whom they are for: `datasets`, TRL, and the models of Harbor.

    run.py --ours .venv/bin --environments target/readers

Each reader is in an environment of its own, made once.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from newer_python import newer_python

# For each reader: what pip installs, and what it installs without dependencies.
ENVIRONMENTS: dict[str, tuple[list[str], list[str]]] = {
    "datasets": (["--requirement", str(ROOT / "requirements" / "readers.txt")], ["trl==1.16.0"]),
    "atif": (["pydantic==2.14.4"], ["harbor==0.26.0"]),
}


def python_of(name: str, folder: Path, base: Path) -> Path:
    """The Python of an environment, which is made if there is none."""
    python, ready = folder / name / "bin" / "python", folder / name / "ready"
    with_dependencies, without = ENVIRONMENTS[name]
    wanted = " ".join([*with_dependencies, *without])
    if not ready.exists() or ready.read_text() != wanted:
        print(f"── the readers' environment {name}", flush=True)
        subprocess.run([str(base), "-m", "venv", "--clear", str(folder / name)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*install, *with_dependencies], check=True)
        subprocess.run([*install, "--no-deps", *without], check=True)
        ready.write_text(wanted)
    return python


def main() -> None:
    """Writes the files, and has each reader read them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ours", type=Path, required=True, help="folder of our Python and the command agl")
    parser.add_argument("--environments", type=Path, required=True, help="folder for the readers")
    options = parser.parse_args()
    base = newer_python()
    if base is None:
        sys.exit("Python 3.12 or newer is needed: set CONTROLLER_PYTHON=/path/to/python3.12")
    with tempfile.TemporaryDirectory() as out:
        subprocess.run([str(options.ours / "python"), str(HERE / "write.py"), out], check=True)
        for name in ENVIRONMENTS:
            python = python_of(name, options.environments.absolute(), base)
            subprocess.run([str(python), str(HERE / f"read_{name}.py"), out], check=True)


if __name__ == "__main__":
    main()
