"""Training: the one loop, the weights' moving average, and checkpoints."""

from ditkit.training.loop import train
from ditkit.training.seeds import train_seeds

__all__ = ["train", "train_seeds"]
