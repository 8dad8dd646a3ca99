"""The exceptions that stand for wrong input rather than a defect of the library."""


class InputError(ValueError):
    """What the user gave cannot be used.

    The message is one line that names the file, flag or field and the remedy. The command line
    prints it without a traceback and exits with status 2; everything else is a bug and shows one.
    """


class NotFinite(InputError):
    """What a model computed is no finite number: it was lost in training, or was asked for too much."""
