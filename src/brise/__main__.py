"""`python -m brise` is the command `brise`."""

import sys

from brise.cli.main import main

sys.exit(main())
