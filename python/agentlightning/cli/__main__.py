"""`python -m agentlightning.cli`."""

import sys

from agentlightning.cli import main

sys.exit(main())
