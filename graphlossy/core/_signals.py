"""SIGINT and SIGTERM during training: the first one is kept until what is under way is done."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Signals"]


class Signals:
    """Keeps the first SIGINT or SIGTERM; a second one stops at once.

    Under torchrun a second one changes nothing: both the terminal and torchrun pass Ctrl-C on to every process, and
    torchrun itself kills what has not ended after 30 seconds.

    Attributes:
        number: the signal that came; None while none has.
    """

    def __init__(self) -> None:
        self.number: int | None = None

    @contextmanager
    def caught(self, stopping: Callable[[], None]) -> Iterator[None]:
        """Inside this context signals are kept.

        Args:
            stopping: called when the first one comes.

        Raises:
            KeyboardInterrupt: a second signal came.
        """

        def handle(number: int, frame: FrameType | None) -> None:
            if self.number is None:
                self.number = number
                stopping()
            elif "TORCHELASTIC_RUN_ID" not in os.environ:
                raise KeyboardInterrupt

        self.number = None
        before = {}
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                before[number] = signal.signal(number, handle)
        except ValueError:  # not the main thread: signals stay with the program that called us
            pass
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
