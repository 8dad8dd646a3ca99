"""Studies: named experiments of several trainings, `ditkit study NAME`.

A study is a module with `cells()`, the trainings and where they are scored, and `report(results, out)`, which
writes what came out. Adding one: a file, and its line below.
"""

from types import ModuleType

from ditkit.lazy import Named

STUDIES: dict[str, Named | ModuleType] = {
    "scaling": Named("ditkit.studies.scaling"),
    "conditionings": Named("ditkit.studies.conditionings"),
    "samplers": Named("ditkit.studies.samplers"),
    "sit-ladder": Named("ditkit.studies.sit_ladder"),
    "udit": Named("ditkit.studies.udit"),
    "udit-ladder": Named("ditkit.studies.udit_ladder"),
    "matryoshka": Named("ditkit.studies.matryoshka"),
    "anysize": Named("ditkit.studies.anysize"),
    "moving": Named("ditkit.studies.moving"),
    "modern": Named("ditkit.studies.modern"),
}

__all__ = ["STUDIES"]
