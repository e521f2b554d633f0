"""A random stream of one run's own: runs that take turns do not disturb each other's numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["RandomStream"]


class RandomStream:
    """The state of torch's generators that a run goes on from.

    Args:
        device: where the run trains; its generator belongs to the stream, as that of the CPU.

    Attributes:
        state: of each generator.

    Example:
        >>> stream = RandomStream(torch.device("cpu"))
        >>> with stream.begun(seed=0):
        ...     first = torch.rand(1)
        >>> _ = torch.rand(5)  # not of this stream
        >>> with stream.continued():
        ...     second = torch.rand(1)
        >>> bool(torch.equal(torch.cat([first, second]), torch.rand(2, generator=torch.Generator().manual_seed(0))))
        True
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.state: dict[str, Tensor] = {}

    @contextmanager
    def begun(self, seed: int) -> Iterator[None]:
        """Inside this context torch's generators start from ``seed``; the stream goes on from where they are left."""
        with self.apart():
            torch.manual_seed(seed)
            yield
            self._keep()

    @contextmanager
    def continued(self, seed: int | None = None) -> Iterator[None]:
        """Inside this context torch's generators are the stream's; not moved on by what raises.

        Args:
            seed: starts them anew instead.
        """
        with self.apart():
            if seed is not None:
                torch.manual_seed(seed)
            else:
                torch.set_rng_state(self.state["cpu"])
                if self.device.type == "cuda":
                    torch.cuda.set_rng_state(self.state["cuda"], self.device)
            yield
            self._keep()

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Inside this context nothing moves torch's generators for those outside."""
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            yield

    def _keep(self) -> None:
        self.state = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            self.state["cuda"] = torch.cuda.get_rng_state(self.device)
