"""What went wrong, in one line a user can act on. The command line prints the line and exits with code 2."""


class AsymrecError(Exception):
    """Base of every error that the user's input, files or settings can cause."""


class DataError(AsymrecError):
    """A table that cannot be used; the message names the file, the column and the first bad row."""


class VectorError(AsymrecError):
    """Item vectors that cannot be used: wrong width, not finite, no encoder."""


class ConfigError(AsymrecError):
    """A setting that does not exist or has an impossible value."""


class QuantizerError(AsymrecError):
    """A quantizer that cannot be fitted, or whose fit lost the information it was to keep."""


class PlacingError(AsymrecError):
    """New items for which a fitted model has no place, or a model that has none for any."""


class EvaluationError(AsymrecError):
    """Scores that cannot be ranked, or evaluations that cannot be compared."""


class RunError(AsymrecError):
    """A run folder that cannot be read or written: damaged, of another version, in the way."""


class UnknownIdError(AsymrecError):
    """A user or item id that the data set does not hold."""


def install(extra: str) -> str:
    """How what only some need is installed, for a message."""
    return f"pip install 'asymrec[{extra}]', in a clone '.[{extra}]'"


def one_line(error: Exception) -> str:
    """What another library says of a failure, for a message."""
    return " ".join(str(error).split())[:200]
