"""``python -m ssmke.cli.cost``: the command, where it is not installed."""

import sys

from ssmke.cli.cost import main

sys.exit(main())
