"""The one exception that stands for a mistake a person can correct."""

__all__ = ["TrainError"]


class TrainError(ValueError):
    """A setting, data set, run folder or device with which training cannot start or go on.

    The message is one line: what was given, what is allowed, what to do. The command line prints it and exits with 2.
    """
