"""What is imported when it is first used, so that help and lists are quick.

Sections and registries import no torch, which takes seconds. Modules whose functions compute with it take it from here:

    from __future__ import annotations       # annotations are not evaluated
    from ditkit.lazy import torch            # imported by the first use of one of its names
"""

import ast
import importlib
import inspect
import sys
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
else:

    class _Torch:
        """The standard library's LazyLoader would put a module into `sys.modules` that is not loaded, and libraries take
        its being there for torch's being loaded."""

        def __getattr__(self, name: str) -> Any:
            import torch

            return getattr(torch, name)

    torch = _Torch()

__all__ = ["Named", "exported", "loaded", "summary", "torch"]


class Named:
    """A function or class by its place, "package.module:name", or a module, imported when it is first called or `loaded`.

    For registries: `Path(Named("ditkit.transports.paths:linear"))`. Its signature is that of what it stands for, and so is
    its docstring, which is read from the source as long as the module has not been imported.
    """

    def __init__(self, place: str):
        self.place = place

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__wrapped__(*args, **kwargs)

    @property
    def __wrapped__(self) -> Any:
        module, _, name = self.place.partition(":")
        found = importlib.import_module(module)
        return getattr(found, name) if name else found

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what copying and pickling ask for
            raise AttributeError(name)
        return getattr(self.__wrapped__, name)

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        found = _definition(self.place)
        return None if found is None else ast.get_docstring(found)

    @property
    def keywords(self) -> list[str]:
        """Its keyword-only parameters that have a default, as `name=default`; only the name where that is an expression."""
        found: ast.AST | None = _definition(self.place)
        if isinstance(found, ast.ClassDef):
            found = next((node for node in found.body if getattr(node, "name", "") == "__init__"), None)
        if not isinstance(found, ast.FunctionDef):
            return []
        pairs = zip(found.args.kwonlyargs, found.args.kw_defaults, strict=True)
        return [f"{argument.arg}{_written(default)}" for argument, default in pairs if default is not None]

    def __repr__(self) -> str:
        return f"Named({self.place!r})"


def loaded(thing: Any) -> Any:
    """What a `Named` stands for; anything else as it is."""
    return thing.__wrapped__ if isinstance(thing, Named) else thing


def summary(thing: Any) -> str:
    """What the docstring of a function, class or module says first, to the end of a line that ends a sentence; "" without one."""
    found: list[str] = []
    for line in inspect.cleandoc(thing.__doc__ or "").splitlines():
        if not line:
            break
        found.append(line)
        if line.endswith((".", "?", ":")):
            break
    return " ".join(found)


def _written(default: ast.expr) -> str:
    try:
        return f"={ast.literal_eval(default)}"
    except ValueError:
        return ""


@cache
def _tree(module: str) -> ast.Module:
    spec = find_spec(module)
    assert spec is not None
    return ast.parse(Path(str(spec.origin)).read_text(encoding="utf-8"))


@cache
def _definition(place: str) -> ast.FunctionDef | ast.ClassDef | ast.Module | None:
    """The source of a function or class; of "package.module" that of the module."""
    module, _, name = place.partition(":")
    if not name:
        return _tree(module)
    for node in _tree(module).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return node
    return None


def exported(package: str) -> Callable[[str], Any]:
    """The `__getattr__` of a package whose names are imported when they are first used: those that its `__init__.py`
    imports `if TYPE_CHECKING`, so that each stands once, where type checkers and readers find it."""
    places: dict[str, str] = {}

    def __getattr__(name: str) -> Any:
        if not places:
            places.update(_imported_for_types(package))
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(places[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return __getattr__


def _imported_for_types(package: str) -> dict[str, str]:
    """Name -> module."""
    return {
        alias.name: node.module
        for block in _tree(package).body
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
