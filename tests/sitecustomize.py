"""Run by every Python process that a test starts, before its own code: see `no_network`."""

import os

from no_network import LOG, forbid

if LOG in os.environ:
    forbid()
