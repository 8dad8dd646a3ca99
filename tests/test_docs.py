"""The documentation's commands and code are what they say they are."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from commands import understood
from PIL import Image

from ditkit.cli import main
from ditkit.sampling import SAMPLERS

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(path, language):
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.DOTALL)


def commands():
    for path in DOCUMENTS:
        for line in "\n".join(blocks(path, "sh")).replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["ditkit"]:
                yield pytest.param(words[1:], id=f"{path.name}: {' '.join(words)[:60]}")


PLACES = ("DIR", "/data/imagenet/train")


@pytest.mark.parametrize("words", commands())
def test_every_documented_command_is_understood(words, tmp_path):
    """Flags are parsed as the verb does it; nothing is run."""
    Image.new("L", (8, 8)).save(tmp_path / "0.png")
    own = {"midpoint": "heun"}  # what a module of one's own registers
    understood([str(tmp_path) if word in PLACES else own.get(word, word) for word in words])


def test_what_the_readme_says_can_be_typed_in_its_order():
    """Every line of its shell is a command that is there by then: of make, of the shell, or, once the environment is
    activated, ditkit's."""
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    active = False
    for block in blocks(ROOT / "README.md", "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words == [".", ".venv/bin/activate"]:
                active = True
            elif words:
                assert (words[0] == "ditkit" and active) or (words[0] == "make" and words[1] in targets), line
    assert active


def test_commands_within_sentences_are_understood(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "0.png")
    found = re.findall(r"(?<!`)`ditkit ([a-z-]+ [^`]+)`", (ROOT / "README.md").read_text())
    for text in found:
        understood([str(tmp_path) if word in PLACES else word for word in shlex.split(text)])
    assert found


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(SAMPLERS, "midpoint", None)  # to be taken out again
    del SAMPLERS["midpoint"]
    names: dict = {}
    for code in blocks(ROOT / "README.md", "python"):
        exec(code, names)
    assert names["images"].shape == (2, 1, 8, 8)
    assert names["state"].images == 2000
    assert main(["sample", "my-model", "--n", "2", "--steps", "1"]) == 0


def test_parts_of_ones_own_as_the_docs_have_them(tmp_path):
    """The module of extending.md, named on the command line as it says, trains and samples; the rest of its code runs."""
    module, *others = blocks(ROOT / "docs/extending.md", "python")
    (tmp_path / "my_parts.py").write_text(module)
    text = (ROOT / "docs/extending.md").read_text()
    lines = re.findall(r"^ditkit .*(?:\n    .*)*", text.replace("\\\n", "\n"), re.MULTILINE)
    small = "--train.images 16 --train.batch 8 --backbone.width 24 --backbone.depth 2 --backbone.heads 2"
    for line, further in zip(lines, (small, "--n 2"), strict=True):
        done = subprocess.run(
            [sys.executable, "-m", *shlex.split(line), *shlex.split(further)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            encoding="utf-8",
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr[-2000:]
    assert '"small_tokens": ' in (tmp_path / "runs/mine/log.jsonl").read_text()
    names: dict = {}
    for code in others:
        exec(code, names)
    assert len(names["norms"]) == len(names["net"].blocks)


def test_links_and_pictures_exist():
    for path in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path.name}: {target}"
