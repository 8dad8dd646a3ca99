"""Training: the one loop, the weights' moving average, and checkpoints."""

from ditkit.training.loop import train

__all__ = ["train"]
