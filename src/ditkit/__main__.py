"""`python -m ditkit` and `torchrun -m ditkit` are the command line."""

import sys

from ditkit.cli import main

sys.exit(main())
