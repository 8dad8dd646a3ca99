"""Every switch of every verb, however it is written; and no message names a flag that there is not."""

import ast
import re
from pathlib import Path

import pytest
from commands import BENCHES, SECTIONS, understood

import ditkit
from ditkit.backbones import BACKBONES
from ditkit.cli import main
from ditkit.cli.classifier import ClassifierCommand
from ditkit.cli.encode import EncodeCommand
from ditkit.cli.info import NamedCommand, RecipeCommand
from ditkit.cli.parsing import fields, only, plain, without
from ditkit.cli.plan import PlanCommand
from ditkit.cli.train import TrainCommand
from ditkit.cli.train_codec import TrainCodecCommand
from ditkit.codecs import CODECS
from ditkit.data import DATA
from ditkit.errors import InputError
from ditkit.recipes import recipe

RECIPE = recipe("digits").model_dump()


def sections():
    """Every verb's, with every kind of network, data and codec inside."""
    yield from (*SECTIONS.values(), *BENCHES.values(), NamedCommand)
    yield TrainCommand.model_validate(recipe("emoji-matryoshka").model_dump())  # with a text and levels
    for command in (TrainCommand, EncodeCommand, RecipeCommand, PlanCommand):
        yield command.model_validate(RECIPE)
        for kind, values in (("backbone", BACKBONES), ("data", DATA), ("codec", CODECS)):
            for value in values.values():
                yield command.model_construct(**dict(TrainCommand.model_validate(RECIPE)) | {kind: value})
    for data in DATA.values():
        yield TrainCodecCommand(data=data)
        yield ClassifierCommand(data=data)


def switches(section):
    return [flag for flag, field in fields(section) if field.annotation is bool]


def test_both_ways_to_negate_every_switch():
    """`plain` writes the second way."""
    found = set()
    for section in sections():
        known = dict(fields(section))
        for flag in switches(section):
            above, dot, last = flag.rpartition(".")
            written_so = [f"--{above}{dot}no-{last}"]
            for written in (
                f"--no-{flag}",
                written_so[0],
                f"--no-{flag}".replace("-", "_").replace("__", "--", 1),
            ):
                assert plain([written], known) == written_so
            assert plain([f"--{flag}"], known) == [f"--{flag}"]
            found.add(flag)
    assert {"data.check", "data.flip", "backbone.label", "backbone.inner.text-pooled", "train.packed", "png", "draw",
            "private", "modules", "backbone.levels.0.normalised", "codec.tiling"} <= found  # fmt: skip


@pytest.mark.parametrize(
    ("command", "flag", "value"),
    [
        ("train digits", "data.flip", False),
        ("train fashion-dit", "backbone.label", False),
        ("train imagenet256-sit-xl2", "data.check", False),
        ("train imagenet256-sit-xl2", "codec.tiling", False),
        ("train emoji-matryoshka", "backbone.inner.text-pooled", False),
        ("encode imagenet256-sit-xl2", "data.flip", False),
        ("info digits", "train.packed", False),
        ("train-codec digits", "data.flip", False),
        ("sample digits", "png", False),
        ("sample digits", "npz", False),
        ("study scaling", "draw", False),
        ("bench", "compile", False),
    ],
)
def test_both_ways_are_understood_by_the_verb(command, flag, value):
    above, dot, last = flag.rpartition(".")
    for written, expected in ((f"--no-{flag}", False), (f"--{above}{dot}no-{last}", False)):
        found = understood([*command.split(), written])
        for name in flag.replace("-", "_").split("."):
            found = getattr(found, name)
        assert found is expected


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        ("train digits", "train.compile"),
        ("encode digits", "train.compile"),
        ("info digits", "train.compile"),
        ("sample digits", "compile"),
        ("eval digits", "compile"),
        ("compare digits fashion", "compile"),
        ("likelihood digits", "compile"),
        ("study scaling", "compile"),
    ],
)
def test_compile_is_a_choice_and_still_a_switch(command, flag):
    above, dot, last = flag.rpartition(".")
    ways = {
        "on": [f"--{flag}", f"--{flag} on", f"--{flag}=on"],
        "off": [f"--no-{flag}", f"--{above}{dot}no-{last}", f"--{flag} off"],
        "auto": ["", f"--{flag} auto"],
    }
    for value, written in ways.items():
        for way in written:
            found = understood([*command.split(), *way.split()])
            assert (found.train if above else found).compile == value


def test_a_bare_switch_before_the_run():
    """What follows it is no value of it."""
    assert understood(["sample", "--compile", "digits"]).run == "digits"
    assert understood(["sample", "--compile", "off", "digits"]).compile == "off"
    with pytest.raises(InputError, match=r"--train\.compile.*maybe|maybe.*--train\.compile"):
        understood(["train", "digits", "--train.compile", "maybe"])


def test_what_is_no_switch_is_left_alone():
    known = dict(fields(TrainCommand.model_validate(RECIPE)))
    for words in (["--no-train.lr"], ["--no-such"], ["digits"], ["--train.images", "5"], ["--no-"], ["--"]):
        assert plain(words, known) == words
    with pytest.raises(InputError, match=r"--no-train\.lr"):
        understood(["train", "digits", "--no-train.lr"])


def test_flags_to_go_on_with():
    words = [
        "digits",
        "--data",
        "DIR",
        "--data.size",
        "8",
        "--out",
        "a b",
        "--codec.scale",
        "1",
        "2",
        "--shard=3",
    ]
    assert without(words, {"out", "shard"}) == words[:5] + words[7:10]
    assert only(words, "data") == ["--data.size", "8"]


OTHERS = {"backbone", "codec", "data", "text", "backbone.inner", "backbone.levels", "cost", "statistics", "gpu", "json",
          "help", "version", "section.field", "data.field", "plugin", "help-all"}  # fmt: skip
FOREIGN = {
    "ckpt",
    "show-toplevel",
    "always",
    "dirty",
    "logdir",
    "standalone",
    "local-addr",
    "nproc-per-node",
    "junit-xml",
}
"""Flags of the released code, of git, tensorboard, torchrun and pytest."""


def test_every_flag_that_a_message_names_is_there():
    """Of some verb, with some network, data or codec."""
    known = OTHERS | FOREIGN | {flag for section in sections() for flag, _ in fields(section)}
    unknown, found = [], 0
    for path in (Path(ditkit.__file__).parent).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for name in re.findall(r"(?<![\w-])--([a-z][\w.-]*\w)", node.value):
                    found += 1
                    if not {name, re.sub(r"(^|\.)no-", r"\1", name, count=1)} & known:
                        unknown.append(f"{path.name}: --{name}")
    assert not unknown
    assert found > 200


def test_every_flag_that_there_is_not_is_named_with_the_nearest(capsys):
    assert main(["train", "digits", "--train.lrr", "3", "--hidth", "7", "--zzz"]) == 2
    error = capsys.readouterr().err
    assert (
        "unknown flags --train.lrr (did you mean --train.lr?), --hidth (did you mean --backbone.width?), --zzz (see"
        in error
    )


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["sample", "digits", "--n", "x"], "--n: 'x' is no whole number (see ditkit sample --help)"),
        (["sample", "digits", "--guidance", "x; y"], "--guidance: 'x; y' is no number (see ditkit sample --help)"),
        (["sample", "digits", "--seed", "x"], "--seed: 'x' is no whole number (see ditkit sample --help)"),
        (["sample", "digits", "--interval", "a", "b"], "--interval: 'a' is no number (see ditkit sample --help)"),
        (["train", "digits", "--train.clip", "x"], "--train.clip: 'x' is no number (see ditkit train digits --help)"),
        (["train", "digits", "--train.micro-batch", "-1"],
         "--train.micro-batch: Input should be greater than or equal to 1 (see ditkit train digits --help)"),
        (["train", "digits", "--train.stages", "x"],
         "--train.stages: 'x' is no whole number (see ditkit train digits --help)"),
    ],
)  # fmt: skip
def test_a_value_that_is_none_is_one_line_without_the_help_of_its_flag(argv, expected, capsys):
    assert main(argv) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.sub(r"see \S.* (sample|train)", r"see ditkit \1", line) == f"ditkit: {expected}"
