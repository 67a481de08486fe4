"""`python -m agentlightning.verl`."""

import sys

from agentlightning.verl import VERLNotSupportedError
from agentlightning.verl.entrypoint import main

if __name__ == "__main__":
    try:
        main()
    except VERLNotSupportedError as error:
        sys.exit(str(error))
