"""Every error that earlyworm raises on purpose has one base, and a message that names the value and the cure."""


class EarlywormError(Exception):
    """Base of all errors raised by earlyworm."""


class UnitsError(EarlywormError):
    """No units can be found in the model, or they do not fit it."""


class SearchError(EarlywormError):
    """The search is used in a way in which it would do nothing, or something wrong."""


class TicketError(EarlywormError):
    """A ticket is damaged, or belongs to another model."""


class ConfigError(EarlywormError):
    """An option has an impossible value."""


class DataError(EarlywormError):
    """A data set is missing, damaged, or does not fit the model."""


class RunError(EarlywormError):
    """A run cannot start, go on, or be read."""


def first_line(error: Exception) -> str:
    """The first line of an error's message, for one-line messages of our own."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
