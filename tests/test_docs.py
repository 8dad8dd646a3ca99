"""The documentation's commands and code are what they say they are."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from ditkit.cli import VERBS, main
from ditkit.cli.encode import parse_encode
from ditkit.cli.info import parse_info
from ditkit.cli.parsing import parse
from ditkit.cli.train import parse_train
from ditkit.cli.train_codec import parse_train_codec

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


@pytest.mark.parametrize("words", commands())
def test_every_documented_command_is_understood(words, tmp_path):
    """Flags are parsed as the verb does it; nothing is run."""
    Image.new("L", (8, 8)).save(tmp_path / "0.png")
    verb, *rest = [str(tmp_path) if word in ("DIR", "/data/imagenet/train") else word for word in words]
    assert verb in VERBS
    own = {"train": parse_train, "info": parse_info, "encode": parse_encode, "train-codec": parse_train_codec}
    if verb in own:
        own[verb](rest)
        return
    from ditkit.cli import (
        bench,
        classifier,
        compare,
        convert,
        demo,
        evaluate,
        likelihood,
        listing,
        reference,
        sample,
        study,
    )

    targets = {
        "sample": sample.SampleCommand,
        "eval": evaluate.EvalCommand,
        "compare": compare.CompareCommand,
        "likelihood": likelihood.LikelihoodCommand,
        "reference": reference.ReferenceCommand,
        "study": study.StudyCommand,
        "list": listing.ListCommand,
        "bench": bench.BenchCommand,
        "convert": convert.ConvertCommand,
        "demo": demo.DemoCommand,
        "classifier": classifier.ClassifierCommand,
    }
    default = None
    if verb == "classifier":
        data, *rest = rest
        default = classifier.ClassifierCommand(data=classifier.data_section(data))
    parse(targets[verb], rest, verb, default=default)


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(ROOT / "README.md", "python")
    names: dict = {}
    exec(code, names)
    assert names["images"].shape == (2, 1, 8, 8)
    assert main(["sample", "my-model", "--n", "2", "--steps", "1"]) == 0


def test_links_and_pictures_exist():
    for path in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path.name}: {target}"
