"""Pure mathematics between data and noise: interpolants, predictions, losses, denoisers."""

from ditkit.transports.denoiser import Denoiser, Network
from ditkit.transports.interpolants import DDPM_STEPS, DISCRETE, PATHS, Coeffs
from ditkit.transports.predictions import PREDICTIONS, Prediction
from ditkit.transports.transport import TIME_LAWS, Transport


def transport(path: str = "linear", **fields) -> Transport:
    """A transport by the name of its path, for instance transport("linear", predict="velocity").

    Raises InputError for an unknown path, prediction or field.
    """
    return Transport.checked({"path": path, **fields}, "transport")


__all__ = [
    "DDPM_STEPS",
    "DISCRETE",
    "PATHS",
    "PREDICTIONS",
    "TIME_LAWS",
    "Coeffs",
    "Denoiser",
    "Network",
    "Prediction",
    "Transport",
    "transport",
]
