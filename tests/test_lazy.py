"""Help and lists import nothing heavy; what is imported late is what it says."""

import ast
import importlib
import inspect
import subprocess
import sys
import types
from pathlib import Path

import pytest

import ditkit
from ditkit import backbones, codecs, data, evaluation, sampling, text, transports
from ditkit.chosen import settings_of
from ditkit.evaluation import FEATURES
from ditkit.lazy import Named, loaded, summary
from ditkit.nn.registries import ATTENTIONS, CONDITIONINGS
from ditkit.objectives import ROUTINGS, TERMS
from ditkit.recipes import RECIPES
from ditkit.studies import STUDIES

HEAVY = ("torch", "torchdiffeq", "scipy", "diffusers", "transformers", "datasets", "sklearn", "matplotlib")
QUICK = """
import sys
from ditkit.cli import main
for argv in {commands}:
    try:
        assert main(argv) == 0, argv
    except SystemExit as end:
        assert not end.code, argv
    heavy = [name for name in {heavy} if name in sys.modules]
    assert not heavy, (argv, heavy)
"""


def test_help_and_lists_import_nothing_heavy():
    """In a process of its own: here everything is imported already."""
    commands = [
        ["--help"], ["--version"], ["list"], ["list", "samplers"], ["sample", "--help"],
        ["train", "--help"], ["train", "fashion-sit", "--backbone", "U-DiT", "--data", "hub", "--codec", "vae", "--help"],
        ["train", "digits", "--sample.sampler", "ddim", "--help"],
        *(["train", name, "--help"] for name in RECIPES),
    ]  # fmt: skip
    code = QUICK.format(commands=commands, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-2000:]


def test_what_is_named_is_there():
    named = [*CONDITIONINGS.values(), *ATTENTIONS.values(), *STUDIES.values()]
    for choice in named:
        assert isinstance(choice, Named)
        assert summary(choice) == summary(loaded(choice))
        assert summary(choice)
    for features in FEATURES.values():
        assert callable(loaded(getattr(features.load, "func", features.load)))


def test_a_named_function_is_like_the_function():
    named = Named("ditkit.sampling.ancestral:ddim")
    assert inspect.signature(named) == inspect.signature(sampling.ddim)
    assert named.__doc__ == inspect.getdoc(sampling.ddim)
    assert loaded(sampling.ddim) is sampling.ddim


@pytest.mark.parametrize("package", [ditkit, backbones, codecs, data, evaluation, sampling, text, transports])
def test_every_exported_name_is_there(package):
    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        package.no_such_name  # noqa: B018


def imported_for_types(tree):
    """Names that a module imports `if TYPE_CHECKING`, unless it is a package, which gives them when asked."""
    blocks = [b for b in tree.body if isinstance(b, ast.If) and getattr(b.test, "id", "") == "TYPE_CHECKING"]
    return {alias.asname or alias.name for block in blocks for node in block.body
            if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names}  # fmt: skip


def used(node):
    """The names that are looked up where a module runs, annotations apart."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.Name):
                yield child.id
            elif (
                isinstance(child, ast.AST)
                and getattr(getattr(child, "test", None), "id", "") != "TYPE_CHECKING"
            ):
                yield from used(child)


def test_what_is_imported_for_types_only_is_used_in_annotations_only():
    for path in Path(ditkit.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if path.name != "lazy.py":
            late = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.col_offset > 4
                    for alias in node.names}  # fmt: skip
            assert not imported_for_types(tree) & {*used(tree)} - late, path


def test_what_a_package_exports_is_not_hidden_by_a_module():
    """A module of a name that its package exports late would take its place when it is imported."""
    import pkgutil

    import ditkit

    for _, name, package in pkgutil.walk_packages(ditkit.__path__, "ditkit."):
        if package:
            module = importlib.import_module(name)
            inside = {found.name for found in pkgutil.iter_modules(module.__path__)}
            for exported in inside & {*getattr(module, "__all__", ())}:
                importlib.import_module(f"{name}.{exported}")
                assert not isinstance(getattr(module, exported), types.ModuleType), f"{name}.{exported}"


def test_a_list_shows_whole_sentences_and_the_defaults_of_settings():
    """Also of what is not imported yet."""
    sra, tread = TERMS["sra"], ROUTINGS["tread"]
    assert summary(sra).endswith("at a less noisy time: their smooth absolute difference.")
    assert settings_of(tread) == ["rate=0.5", "first=2", "last=-1"] == settings_of(loaded(tread))
    assert "group" in settings_of(TERMS["dispersive"])  # whose default is an expression
