"""When something is due, and the learning rate, by the number of images seen."""

from ditkit.chosen import chosen
from ditkit.optimizers.schedules import SCHEDULES
from ditkit.recipe import Training


def learning_rate(config: Training, seen: int) -> float:
    """The rate for the step after `seen` images: linear warm-up, then the schedule."""
    rate = config.lr
    if seen < config.warmup_images:
        rate *= (seen + config.batch) / (config.warmup_images + config.batch)
    return rate * chosen(SCHEDULES, config.schedule)(min(1.0, seen / config.images))


def due(every: int, before: int, seen: int, last: int) -> bool:
    """Whether the step from `before` to `seen` images crossed a multiple of `every`, or was the last."""
    return seen // every > before // every or seen >= last
