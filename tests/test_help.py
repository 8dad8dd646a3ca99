"""The help: what is used most first, with its choices; all on request; and every flag by its field's rules."""

import re

import pytest
from commands import understood

from ditkit.cli import main
from ditkit.cli.helping import COLUMNS, COMMON
from ditkit.cli.parsing import fields
from ditkit.cli.shapes import shape_of
from ditkit.errors import InputError
from ditkit.extending import register
from ditkit.recipes import RECIPES
from ditkit.transports import PATHS, Path


def text(capsys, *words):
    with pytest.raises(SystemExit) as end:
        main([*words])
    assert end.value.code == 0
    return capsys.readouterr().out


def flags(text):
    """The flags that a help explains, in its order."""
    return [line.split()[0] for line in text.splitlines() if line.startswith("  --")]


@pytest.mark.parametrize(
    "words", ["train digits", "train moving-digits", "train emoji-t2i", "sample", "eval", "compare"]
)
def test_every_flag_that_a_help_names_is_one_of_the_verb(words, capsys):
    """A field that another's text names is the verb's own flag; what is none, as an extra, is no flag."""
    whole = text(capsys, *words.split(), "--help-all")
    own = {word for word in flags(whole)}
    prose = re.sub(r"`[^`]*`", "", whole)
    assert {*re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", prose)} <= own | {"--help-all"}


def test_sampling_begins_with_what_is_used_most(capsys):
    short = text(capsys, "sample", "--help")
    assert flags(short)[:6] == ["--n", "--labels", "--prompt", "--steps", "--sampler", "--guidance"]
    assert "--seed INT" in short
    assert "--eta" not in short
    assert "{euler," in short


def test_all_flags_on_request(capsys):
    for words in (["sample"], ["train", "digits"], ["train", "emoji-matryoshka"], ["eval"]):
        whole, short = text(capsys, *words, "--help-all"), text(capsys, *words, "--help")
        assert {*flags(short)} < {*flags(whole)}
        section = understood([*words, *["digits"] * (len(words) == 1)])
        takes = {f"--{flag}" for flag, field in fields(section) if len(shape_of(field).literals) != 1}
        loose = {"--run", "--what", "--text"}
        assert takes - {*flags(whole)} <= loose
        for line in (short + whole).splitlines():
            assert len(line) <= COLUMNS or " " not in line.strip(), line


@pytest.mark.parametrize("verb", COMMON)
def test_common_flags_are_there(verb):
    """Of some recipe at least."""
    there = set()
    for name in RECIPES if verb in ("train", "encode", "info", "plan") else ["digits"]:
        there |= {flag for flag, _ in fields(understood([verb, name]))}
    for data in ("folder", "hub", "arrays"):
        there |= {flag for flag, _ in fields(understood(["train", "digits", "--data", data]))}
    others = (
        {"json", "modules", "batch", "init", "seeds", "out", "device"}
        if verb in ("train", "info", "plan")
        else set()
    )
    assert {*COMMON[verb]} <= there | others


def test_sections_are_grouped_with_what_replaces_them(capsys):
    short = text(capsys, "train", "fashion-sit", "--help")
    titles = [line for line in short.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles == ["flags:", "data:", "codec:", "text:", "backbone:", "transport:", "train:", "sample:"]
    for flag in ("--data NAME|DIR", "--codec NAME", "--text NAME", "--backbone NAME", "--train.lr FLOAT"):
        assert flag in short
    assert "--backbone.conditioning {adaln_zero,adaln,cross_attention,in_context}" in short


def test_what_replaces_the_parts_of_a_nested_network_is_shown(capsys):
    nested = text(capsys, "train", "digits", "--backbone", "Matryoshka", "--help")
    assert "--backbone.inner NAME|RUN" in nested
    assert "--backbone.levels INT" in nested
    assert "--backbone.inner NAME" not in text(capsys, "train", "digits", "--help")


def test_a_registered_name_is_shown(capsys):
    register("path", "mine", Path(PATHS["linear"].coeffs))
    try:
        assert "cosine,mine}" in text(capsys, "train", "digits", "--help")
    finally:
        del PATHS["mine"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("sample digits --n", "--n: give INT"),
        ("sample digits --interval 0.1", "--interval: give FLOAT FLOAT"),
        ("sample digits fashion", "'fashion' is too much beside 'digits'"),
        ("train digits 5", "'5' belongs to no flag"),
        ("train digits --train.batch 5 6", "'6' belongs to no flag"),
        ("sample digits --device xyz", "--device: unknown 'xyz'; there are auto, cpu, cuda, mps"),
        ("train digits --train.batch 1.5", "--train.batch: '1.5' is no whole number"),
        ("train digits --train.lr nan", "--train.lr: Input should be a finite number"),
        ("train digits --no-train.lr", "--no-train.lr: --train.lr is no switch, and takes FLOAT"),
        ("sample", "run: it is missing"),
    ],
)
def test_what_is_not_understood(words, message):
    with pytest.raises(InputError) as error:
        understood(words.split())
    assert str(error.value).startswith(message)
    assert "--help)" in str(error.value)


def test_values_are_read_as_they_are_meant(tmp_path):
    found = understood(
        ["train", "digits", "--data", "arrays", "--data.range", "-40", "1e3", "--train.betas", "0.8", "0.9"]
    )
    assert found.data.range == (-40.0, 1000.0)
    assert found.train.betas == (0.8, 0.9)
    assert understood(["sample", "digits", "--negative=--x"]).negative == "--x"
    assert understood(["sample", "--n", "3", "digits"]).run == "digits"
    assert understood(["train", "digits", "--data.size=16"]).data.size == 16
    for words, scale in ((["2"], 2.0), (["1", "2"], (1.0, 2.0))):
        assert understood(["train", "digits", "--codec", "vae", "--codec.scale", *words]).codec.scale == scale
    assert understood(["compare", "a", "b", "--n", "8"]).runs == ("a", "b")
    assert understood(["compare", "--n", "8", "a", "b"]).runs == ("a", "b")
    levels = understood(["train", "emoji-matryoshka", "--backbone.levels.0.widths", "64"]).backbone.levels
    assert levels[0].widths == (64,)
    assert levels[1].widths == (64,)
