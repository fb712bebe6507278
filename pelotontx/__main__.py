"""``python -m pelotontx`` is the command ``peloton``."""

import sys

from pelotontx.cli import main

sys.exit(main())
