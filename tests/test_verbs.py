"""What the program tells one to type works as it is typed, however the program was started."""

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from commands import understood

import ditkit
from ditkit.cli import main
from ditkit.cli.options import next_sample
from ditkit.cli.train import next_eval
from ditkit.cli.verbs import explained, to_type, typed
from ditkit.recipes import recipe

SCRIPT = f"#!{sys.executable}\nimport sys\nfrom ditkit.cli import main\nsys.exit(main())\n"


@pytest.fixture
def installed(tmp_path):
    """A folder with .venv/bin/ditkit, as pip makes it, and one whose name has a space."""
    for folder in (tmp_path / ".venv" / "bin", tmp_path / "my tools"):
        folder.mkdir(parents=True)
        (folder / "ditkit").write_text(SCRIPT)
        (folder / "ditkit").chmod(0o755)
    return tmp_path


def shell(line, folder, *path):
    """What a shell prints in that folder, these first on its path."""
    environment = {**os.environ, "PATH": os.pathsep.join([*map(str, path), "/usr/bin", "/bin"])}
    return subprocess.run(["sh", "-c", line], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("line", "path", "expected"),
    [
        (".venv/bin/ditkit", [], ".venv/bin/ditkit"),
        ("'my tools/ditkit'", [], "'my tools/ditkit'"),
        ("ditkit", [".venv/bin"], "ditkit"),
        (".venv/bin/ditkit", [".venv/bin"], "ditkit"),
        (".venv/bin/ditkit", ["my tools"], ".venv/bin/ditkit"),
        (f"{shlex.quote(sys.executable)} -m ditkit", [], f"{shlex.quote(sys.executable)} -m ditkit"),
        ("python -m ditkit", [Path(sys.executable).parent], "python -m ditkit"),
    ],
)
def test_however_it_is_started(line, path, expected, installed):
    found = shell(line, installed, *(installed / each for each in path))
    assert found.stdout.splitlines()[0] == f"usage: {expected} VERB ..."
    assert found.stdout.endswith(f"A first look: {expected} demo\n")


def test_errors_and_help_name_commands_that_work(installed, monkeypatch, capsys):
    monkeypatch.chdir(installed)
    monkeypatch.setattr(sys, "argv", [".venv/bin/ditkit"])
    assert main(["info", "nothing"]) == 2
    assert "(`.venv/bin/ditkit list` names them)" in capsys.readouterr().err
    assert main(["list", "--wrong"]) == 2
    assert "(see .venv/bin/ditkit list --help)" in capsys.readouterr().err
    assert main(["train", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: .venv/bin/ditkit train RECIPE")
    with pytest.raises(SystemExit):
        main(["list", "--help"])
    assert capsys.readouterr().out.startswith("usage: .venv/bin/ditkit list")


def test_only_verbs_are_commands(monkeypatch):
    monkeypatch.setattr("ditkit.cli.verbs.program", lambda: ".venv/bin/ditkit")
    assert typed("no classifier comes with ditkit for x; `ditkit list features`") == (
        "no classifier comes with ditkit for x; `.venv/bin/ditkit list features`"
    )
    assert to_type("sample", Path("my run"), "--n", 3) == ".venv/bin/ditkit sample 'my run' --n 3"


def test_flags_that_the_verb_has_not_name_the_verb_that_has_them(tmp_path, capsys):
    text = "it is not there: apt install it, or --data.root DIR"
    assert explained(text, "train") == text
    assert explained(text, "eval").startswith(f"{text} (of `ditkit train`: --data.root; ")
    assert explained("--sampler: none", "eval") == "--sampler: none"
    flags = "--train.images 32 --train.score-images 5 --train.score-features vgg --device cpu"
    assert main(["train", "digits", *flags.split(), "--out", str(tmp_path / "run")]) == 2
    assert "--train.score-features: no network 'vgg'" in capsys.readouterr().err


def test_fields_in_messages_are_flags_here():
    text = (
        "change `data.size` or `backbone.mlp_ratio` 4, `data.flip` False, `train.packed` True; see `apt list`"
    )
    assert typed(text) == (
        "change --data.size or --backbone.mlp-ratio 4, --data.no-flip, --train.packed; see `apt list`"
    )
    assert explained("give `data.root`", "eval").endswith(
        "(of `ditkit train`: --data.root; a run keeps it in recipe.json)"
    )


def test_only_the_command_line_knows_flags():
    """Below it a message names fields, which are parameters in Python."""
    package = Path(ditkit.__file__).parent
    found = []
    torchruns = {"--standalone", "--local-addr", "--nproc-per-node"}
    for path in package.rglob("*.py"):
        if {"cli", "recipes", "studies"} & set(path.relative_to(package).parts):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                commands_out = re.sub(r"`(ditkit|tensorboard) [^`]*`|^--(always|dirty)$", "", node.value)
                found += [
                    (path.name, flag)
                    for flag in re.findall(r"(?<![\w`-])--[a-z][\w.-]*", commands_out)
                    if flag not in torchruns
                ]
    assert not found


def following(out):
    """The commands that an output ends with."""
    return [shlex.split(line)[1:] for line in re.findall(r"^(?:next|or): +(ditkit .*)$", out, re.MULTILINE)]


def test_what_comes_next_is_understood(tmp_path, capsys, monkeypatch):
    """Of every verb that says what comes next; words in capitals are for the reader to fill in."""
    monkeypatch.chdir(tmp_path)
    small = "--backbone.width 24 --backbone.depth 1 --backbone.heads 2 --train.images 32 --train.batch 32"
    averages = "--train.averages power:width=0.1 --train.snapshot-images 32"
    for words in (
        f"train digits {small} {averages} --train.preview-images 0 --train.validate-images 0 --out run",
        "average run --width 0.1 --out one",
        "average run --sweep 0.09 0.1 --out several",
        "convert run --out snapshot",
        "reference digits --out digits.npz",
        "classifier digits --epochs 1 --out digits.safetensors",
        "train-codec digits --data.size 8 --codec.widths 8 8 --train.images 8 --train.batch 4 --n 4 --out codec",
        "encode digits --codec vae --codec.id codec --out latents --backbone.patch 1",
    ):
        if "codec" in words:
            pytest.importorskip("diffusers")
        assert main(words.split()) == 0
        commands = following(capsys.readouterr().out)
        assert commands, words
        for command in commands:
            understood(["digits" if word == "RECIPE" else word for word in command])
    assert commands == [shlex.split(
        "train digits --codec vae --codec.id codec --backbone.patch 1 --train.latents latents"
    )]  # fmt: skip


def test_what_a_model_is_not_sampled_without_is_named():
    assert next_sample(recipe("fashion-sit"), Path("runs/a")) == "ditkit sample runs/a"
    assert next_sample(recipe("emoji-t2i"), Path("runs/a")) == "ditkit sample runs/a --prompt TEXT"
    cascade = recipe("emoji-matryoshka").replace(transport={"cascade": 0.1}, train={"stages": ()})
    assert next_sample(cascade, Path("a")) == "ditkit sample a --prompt TEXT --lower RUN"
    assert next_eval(recipe("digits"), Path("a")) == "ditkit eval a"
    assert next_eval(recipe("emoji-t2i"), Path("a")) == "ditkit eval a --features efficientnet-112"
