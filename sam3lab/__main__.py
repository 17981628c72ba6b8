"""`python -m sam3lab` is the command line."""

import sys

from sam3lab.cli import main

sys.exit(main())
