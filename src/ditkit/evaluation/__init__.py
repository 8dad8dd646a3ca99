"""Scores of generated images: a frozen classifier's features, Fréchet distance, class accuracy."""

from ditkit.evaluation.classifier import (
    Card,
    Classifier,
    bundled_classifier,
    load_classifier,
    save_classifier,
)
from ditkit.evaluation.fit import fit_classifier
from ditkit.evaluation.frechet import Moments, frechet_distance
from ditkit.evaluation.report import Report, evaluate, reference_moments

__all__ = [
    "Card",
    "Classifier",
    "Moments",
    "Report",
    "bundled_classifier",
    "evaluate",
    "fit_classifier",
    "frechet_distance",
    "load_classifier",
    "reference_moments",
    "save_classifier",
]
