"""The verbs of the command line, and how they are typed in the shell that this program was started from."""

import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

# verb -> (module, what it does); modules are imported when chosen, so that help is quick.
VERBS: dict[str, tuple[str, str]] = {
    "demo": ("demo", "train on real digits, sample, score and draw: everything in a few minutes"),
    "train": ("train", "train a recipe; the same command again resumes it"),
    "train-codec": ("train_codec", "train a small autoencoder on your own images"),
    "encode": ("encode", "encode a recipe's images once, to train from the latents"),
    "sample": ("sample", "make images with a run or a snapshot"),
    "eval": ("evaluate", "score a run, a folder or an .npz file"),
    "compare": ("compare", "score several models alike: error bars, pictures, guidance curves"),
    "likelihood": ("likelihood", "bits per dimension of real images"),
    "reference": ("reference", "compute the statistics of reference images once, into a file"),
    "study": ("study", "run a named experiment of several trainings; every cell is cached"),
    "average": ("average", "a model of another average of a run's weights, of any width"),
    "convert": ("convert", "write a model as a snapshot, an official file or a folder of diffusers"),
    "info": ("info", "parameters, multiply-adds and memory of a recipe or a run"),
    "plan": ("plan", "what training a recipe on so many GPUs takes: memory, days, price"),
    "list": ("listing", "what can be chosen: recipes, backbones, samplers, ..."),
    "classifier": ("classifier", "make the frozen classifier that scores a data set"),
    "bench": ("bench", "speed against diffusers on this machine"),
}

PLUGINS: list[str] = []
"""Modules of the user's own that this command loads; the commands that it prints need them, too."""

WITH_SECTIONS = ("train", "train-codec", "encode", "info", "plan", "classifier")
"""Verbs that have a recipe's flags, --data.size and the like."""


def program() -> str:
    """What starts this program again when it is typed: `ditkit` where the shell finds it by that name, otherwise the
    path or the `python -m ditkit` that it was started with."""
    started = Path(sys.argv[0])
    if started.name == "__main__.py" and started.parent.name == "ditkit":
        return f"{shlex.quote(sys.orig_argv[0])} -m ditkit"
    if started.stem != "ditkit":  # from Python
        return "ditkit"
    found = shutil.which("ditkit")
    if found and started.exists() and Path(found).samefile(started):
        return "ditkit"
    return shlex.quote(sys.argv[0])


def to_type(*words: object) -> str:
    """A verb and its arguments as one types them here."""
    own = [word for name in PLUGINS for word in ("--plugin", name)]
    return f"{program()} {shlex.join([*map(str, words), *own])}"


def explained(text: str, verb: str) -> str:
    """The text with a word on the flags of recipes in it, for a verb that has none."""
    pattern = r"--(?:backbone|codec|data|text|train|transport)\.[\w.-]*\w"
    flags = dict.fromkeys(re.findall(pattern, as_flags(text)))
    if not flags or verb in WITH_SECTIONS:
        return text
    return f"{text} (of `ditkit train`: {', '.join(flags)}; a run keeps it in recipe.json)"


def as_flags(text: str, flag_of: Callable[[str], str | None] = lambda name: name) -> str:
    """The text with every field that it names in backquotes, `data.size`, as one types it here, --data.size.

    `flag_of` is the verb's own flag of a name, without the leading dashes; None where there is none, and nothing changes.
    """

    def typed_so(found: re.Match[str]) -> str:
        flag = flag_of(found[1].replace("_", "-"))
        if flag is None:
            return found[0]
        *sections, name = flag.split(".")
        return "--" + ".".join([*sections, f"no-{name}" if found[2] == " False" else name])

    return re.sub(r"`([a-z]\w*(?:\.\w+)*)`( False\b| True\b)?", typed_so, text)


def typed(text: str) -> str:
    """The text with every `ditkit VERB` and every field in it as one types it here."""
    return with_program(as_flags(text))


def with_program(text: str) -> str:
    """The text with every `ditkit VERB` in it as one types it here."""
    verbs = "|".join(VERBS)
    return re.sub(rf"\bditkit(?= (?:{verbs})\b)", lambda _: program(), text)
