"""`ditkit train RECIPE`: every field of the recipe is a flag."""

import re
from pathlib import Path
from typing import Annotated, Self, TypeVar

from pydantic import Field

from ditkit.cli.kinds import switch_kinds
from ditkit.cli.options import lower_levels, next_sample
from ditkit.cli.parsing import parse
from ditkit.cli.verbs import to_type, typed
from ditkit.device import DeviceName, pick_device
from ditkit.errors import InputError
from ditkit.recipe import Recipe
from ditkit.recipes import RECIPES, recipe

USAGE = f"""usage: ditkit train RECIPE [--section.field value ...]

Train a recipe: {", ".join(RECIPES)}.

The same command again resumes it: a run that was stopped and resumed equals one that was not.
Every field of the recipe is a flag; `ditkit train RECIPE --help` lists them with their defaults.
Whole sections are replaced by name: --backbone DiT-S/4, --codec vae, --data fashion-mnist, or
--data DIR for your own images, one sub-folder per class.
--seeds 0 1 2 trains it once with each of these seeds, in OUT/seed-0, OUT/seed-1, ..., which `ditkit compare OUT` sums up.
--train.track tensorboard (wandb, trackio, mlflow) also shows the run there.
The run's folder gets recipe.json, log.jsonl, loss.png, previews/ and checkpoints/; validation.png, the loss
by noise level on held-out images; and with --train.score-images N, scores.png."""


class RecipeFlags(Recipe):
    """A recipe whose every field is a flag, for verbs that add some of their own."""

    device: DeviceName = "auto"
    """Where to compute; auto takes the fastest present."""

    @classmethod
    def of(cls, draft: Recipe) -> Self:
        """The flags of a recipe whose parts are compared when they have been read."""
        return cls.model_construct(**dict(draft))

    @property
    def recipe(self) -> Recipe:
        return Recipe.model_validate({name: getattr(self, name) for name in Recipe.model_fields})


Flags = TypeVar("Flags", bound=RecipeFlags)


class TrainCommand(RecipeFlags):
    """Train a recipe. Run again, the same command resumes it. Every field of the recipe is a flag."""

    out: Path | None = None
    """The run's folder; runs/NAME by default."""
    init: str | None = None
    """Start from another run or snapshot: its classes, size or data may differ; what did not fit is printed."""
    init_inner: str | None = None
    """Start from a run of lower resolution, which goes inside this recipe's levels."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Train once with each of these seeds, in OUT/seed-0, OUT/seed-1, ...: runs that differ in train.seed only."""


def parse_recipe(command: type[Flags], verb: str, argv: list[str]) -> Flags:
    """The recipe named first, with its sections and fields replaced by the flags after it."""
    if not argv or argv[0].startswith("-"):
        raise InputError(f"{verb}: name a recipe first; choose one of: {', '.join(RECIPES)}")
    name, *flags = argv
    base, rest = switch_kinds(recipe(name), flags)
    return parse(command, rest, f"{verb} {name}", default=command.of(base))


def parse_train(argv: list[str]) -> TrainCommand:
    command = parse_recipe(TrainCommand, "train", argv)
    typed_words = {word.partition("=")[0] for word in argv}
    if "--seeds" in typed_words and not command.seeds:
        raise InputError("--seeds: there are none; give one or several, such as 0 1 2")
    if command.seeds and "--train.seed" in typed_words:
        raise InputError("--seeds and --train.seed: each run of --seeds has its own; leave --train.seed out")
    return command


def run(argv: list[str]) -> None:
    if argv[:1] in (["-h"], ["--help"]):
        print(typed(USAGE))
        return
    command = parse_train(argv)
    from ditkit.training import train, train_seeds

    out = command.out or Path("runs") / command.recipe.name
    device = pick_device(command.device)
    if command.seeds:
        try:
            checkpoints = train_seeds(
                command.recipe,
                out,
                command.seeds,
                device=device,
                init=command.init,
                init_inner=command.init_inner,
            )
        except InputError as error:
            raise InputError(re.sub("^seeds(?=:)", "--seeds", str(error))) from None
        print("\n".join(map(str, checkpoints)))
        print(f"next: {to_type('compare', out)}")
        return
    checkpoint = train(command.recipe, out, device=device, init=command.init, init_inner=command.init_inner)
    pictures = "\n".join(str(path) for path in sorted(out.glob("*.png")))
    print(
        f"{checkpoint}\n{pictures}\nnext: {next_sample(command.recipe, out)}\nor:   {next_eval(command.recipe, out)}"
    )


def next_eval(recipe: Recipe, run: Path) -> str:
    """The command that scores a run, in features that can measure its images."""
    from ditkit.evaluation import bundled_classifier

    own = bundled_classifier(recipe.data.kind, recipe.data.size)
    features = [] if own else ["--features", "efficientnet-112"]
    return to_type("eval", run, *features, *lower_levels(recipe))
