"""Studies: named experiments of several trainings, `ditkit study NAME`.

A study is a module with `cells()`, the trainings and where they are scored, and `report(results, out)`, which
writes what came out. Adding one: a file, and its line below.
"""

from types import ModuleType

from ditkit.studies import (
    anysize,
    conditionings,
    matryoshka,
    moving,
    samplers,
    scaling,
    sit_ladder,
    udit,
    udit_ladder,
)

STUDIES: dict[str, ModuleType] = {
    "scaling": scaling,
    "conditionings": conditionings,
    "samplers": samplers,
    "sit-ladder": sit_ladder,
    "udit": udit,
    "udit-ladder": udit_ladder,
    "matryoshka": matryoshka,
    "anysize": anysize,
    "moving": moving,
}

__all__ = ["STUDIES"]
