"""Scores of generated images: feature networks, statistics of what they read, and the metrics on these."""

from typing import TYPE_CHECKING

from ditkit.lazy import exported

if TYPE_CHECKING:
    from ditkit.evaluation.bootstrap import frechet_error, frechet_resamples, standard_error
    from ditkit.evaluation.frechet import Gaussian, Moments, frechet_distance, frechet_warning
    from ditkit.evaluation.inception_score import InceptionScore
    from ditkit.evaluation.kernel import KernelDistance, cmmd, kernel_distance
    from ditkit.evaluation.neighbours import PrecisionRecall, authenticity, nearest, precision_recall
    from ditkit.evaluation.networks import FEATURES, Entry, load_features
    from ditkit.evaluation.networks.classifier import (
        Card,
        Classifier,
        bundled_classifier,
        load_classifier,
        save_classifier,
    )
    from ditkit.evaluation.networks.features import FeatureNetwork, Features
    from ditkit.evaluation.npz import (
        load_statistics,
        npz_images,
        npz_labels,
        read_statistics,
        save_images,
        save_statistics,
    )
    from ditkit.evaluation.report import Report, Scores, scores_of
    from ditkit.evaluation.statistics import Statistics, check_network, gather, gather_all
else:
    __getattr__ = exported(__name__)

__all__ = [
    "FEATURES",
    "Card",
    "Classifier",
    "Entry",
    "FeatureNetwork",
    "Features",
    "Gaussian",
    "InceptionScore",
    "KernelDistance",
    "Moments",
    "PrecisionRecall",
    "Report",
    "Scores",
    "Statistics",
    "authenticity",
    "bundled_classifier",
    "check_network",
    "cmmd",
    "frechet_distance",
    "frechet_error",
    "frechet_resamples",
    "frechet_warning",
    "gather",
    "gather_all",
    "kernel_distance",
    "load_classifier",
    "load_features",
    "load_statistics",
    "nearest",
    "npz_images",
    "npz_labels",
    "precision_recall",
    "read_statistics",
    "save_classifier",
    "save_images",
    "save_statistics",
    "scores_of",
    "standard_error",
]
