"""The one exception that stands for data that cannot be used."""

__all__ = ["DatasetError"]


class DatasetError(ValueError):
    """A data set that does not exist, cannot be read, or holds values with which nothing can be trained.

    The message is one line: what was found, what is allowed, what to do.
    """
