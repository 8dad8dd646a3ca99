"""Pure mathematics between data and noise: paths, predictions, times, losses, denoisers.

Each of the registries can be added to: a path, a prediction, a loss, a weight or a time law of one's own is a choice like any other.
"""

from ditkit.layout import Cond
from ditkit.transports.denoiser import At, Denoiser, Network
from ditkit.transports.losses import LOSSES, Loss
from ditkit.transports.paths import DDPM_STEPS, PATHS, Coeffs, Path
from ditkit.transports.predictions import PREDICTIONS, Parametrisation, Prediction
from ditkit.transports.regression import METHODS, Method
from ditkit.transports.times import TIME_LAWS, TimeLaw
from ditkit.transports.transport import Transport
from ditkit.transports.weights import WEIGHTS


def transport(path: str = "linear", **fields) -> Transport:
    """A transport by the name of its path, for instance transport("linear", predict="velocity").

    Raises InputError for an unknown path, prediction or field.
    """
    return Transport.checked({"path": path, **fields}, "transport")


__all__ = [
    "DDPM_STEPS",
    "LOSSES",
    "METHODS",
    "PATHS",
    "PREDICTIONS",
    "TIME_LAWS",
    "WEIGHTS",
    "At",
    "Coeffs",
    "Cond",
    "Denoiser",
    "Loss",
    "Method",
    "Network",
    "Parametrisation",
    "Path",
    "Prediction",
    "TimeLaw",
    "Transport",
    "transport",
]
