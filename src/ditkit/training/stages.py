"""Progressive training: the lowest resolution first, then levels put around it, one by one (Gu et al., "Matryoshka
Diffusion Models", ICLR 2024, section 3.3).

Each stage is a run like any other, of a recipe that follows from the whole one, and starts from the moving average
of the one before. So it is resumed, watched, sampled and scored like any other.
"""

from ditkit.backbones import MatryoshkaConfig
from ditkit.recipe import Recipe


def stage_recipes(recipe: Recipe) -> list[Recipe]:
    """The recipes of the stages before the last, which is the recipe itself."""
    return [_stage(recipe, k, images) for k, images in enumerate(recipe.train.stages)]


def _stage(recipe: Recipe, k: int, images: int) -> Recipe:
    """Of the lowest k + 1 levels."""
    whole = recipe.backbone
    assert isinstance(whole, MatryoshkaConfig)  # the recipe's own checks have seen to it
    levels = whole.levels[len(whole.levels) - k :]
    backbone = whole.model_copy(update={"levels": levels}) if levels else whole.inner
    kept = len(levels)
    transport, sample = recipe.transport, recipe.sample
    several = bool(levels)
    return recipe.replace(
        name=f"{recipe.name}-stage-{k + 1}",
        backbone=backbone,
        data={"size": recipe.data.size * backbone.ratios[0] // whole.ratios[0]},
        codec={"level_scale": recipe.codec.level_scale[-kept - 1 :]},
        transport={
            "level_weights": transport.level_weights[-kept - 1 :],
            "cascade": transport.cascade if several else None,
        },
        train={
            "images": images,
            "stages": (),
            "level_share": recipe.train.level_share[len(whole.levels) - k :],
            "freeze_inner": several and recipe.train.freeze_inner,
        },
        sample={"level_guidance": sample.level_guidance and sample.level_guidance[-kept - 1 :]},
    )
