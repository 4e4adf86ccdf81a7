"""`python -m nlmegen` is the command line."""

from __future__ import annotations

import sys

from nlmegen.cli import main

sys.exit(main())
