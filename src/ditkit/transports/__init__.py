"""Pure mathematics between data and noise: interpolants, predictions, losses, denoisers."""

from pydantic import ValidationError

from ditkit.errors import InputError
from ditkit.transports.interpolants import DDPM_STEPS, PATHS, Coeffs
from ditkit.transports.layout import Layout
from ditkit.transports.predictions import PREDICTIONS, Prediction
from ditkit.transports.transport import TIME_LAWS, Denoiser, Network, Transport


def transport(path: str = "linear", **fields) -> Transport:
    """A transport by the name of its path, for instance transport("linear", predict="velocity").

    Raises InputError for an unknown path, prediction or field.
    """
    try:
        return Transport.model_validate({"path": path, **fields})
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(map(str, ("transport", *problem["loc"])))
        raise InputError(f"{place}: {problem['msg'].removeprefix('Value error, ')}") from None


__all__ = [
    "DDPM_STEPS",
    "PATHS",
    "PREDICTIONS",
    "TIME_LAWS",
    "Coeffs",
    "Denoiser",
    "Layout",
    "Network",
    "Prediction",
    "Transport",
    "transport",
]
