"""Exceptions that stand for a mistake a person can correct, for a package that is missing, and for a signal."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

__all__ = ["FinetuneError", "Interrupted", "need", "one_line", "quiet", "user_errors"]


class FinetuneError(ValueError):
    """A setting, model, data set or run folder with which fine-tuning cannot start or go on.

    The message is one line: what was given, what is allowed, what to do. The command line prints it and exits with 2.
    """


class Interrupted(Exception):
    """Fine-tuning stopped on a signal after a checkpoint was written.

    Attributes:
        folder: the run folder to resume.
        step: steps done.
        signal_number: SIGINT or SIGTERM.
    """

    def __init__(self, folder: Path, step: int, signal_number: int) -> None:
        super().__init__(f"interrupted after step {step}; the checkpoint is in {folder}")
        self.folder, self.step, self.signal_number = folder, step, signal_number


def need(package: str) -> ModuleType:
    """An optional package, imported now.

    Raises:
        FinetuneError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        if error.name is not None and error.name.partition(".")[0] != package:
            raise
        raise FinetuneError(f"this needs the package {package}: pip install 'graphlossy[llm]'") from None


def one_line(error: BaseException) -> str:
    """The message of an error, its lines joined; its kind where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def user_errors(what: str = "") -> Iterator[None]:
    """Inside this context ValueError and TypeError are user errors of one line, with ``what`` before them."""
    try:
        yield
    except FinetuneError:
        raise
    except (ValueError, TypeError) as error:
        raise FinetuneError(what + one_line(error)) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Inside this context transformers draws no bars and says nothing but errors: what matters is said by us."""
    logging = importlib.import_module("transformers.utils.logging")
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
