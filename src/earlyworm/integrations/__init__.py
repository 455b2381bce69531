"""Callbacks that run the search inside other people's training loops; each needs the package that it is for."""

from earlyworm.errors import EarlywormError


class MissingPackageError(EarlywormError, ImportError):
    """The package that an integration is for is not installed."""
