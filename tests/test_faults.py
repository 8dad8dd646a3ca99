"""The fault campaign in small: a few cases of each class, with the fixed seed. All of it is `make faults`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_few_faults_of_each_class_lose_nothing():
    tests = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-m", "faults", "--few"],
        cwd=tests,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
