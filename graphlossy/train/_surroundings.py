"""What training changes in the process while it runs, and how a lack of memory is told."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from graphlossy.core._memory import is_out_of_memory
from graphlossy.train._config import TrainConfig
from graphlossy.train._errors import TrainError

__all__ = ["memory_errors", "torch_settings"]


@contextmanager
def memory_errors(what: str) -> Iterator[None]:
    """Inside this context a lack of memory is a :class:`~graphlossy.train.TrainError` that names ``what``."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainError(f"not enough memory for {what}") from None


@contextmanager
def torch_settings(config: TrainConfig, device: torch.device) -> Iterator[None]:
    """Inside this context torch has the threads of ``config`` and, on the CPU, its deterministic algorithms."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    switches: Any = torch.utils.deterministic
    fill = switches.fill_uninitialized_memory
    try:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        if device.type == "cpu":
            torch.use_deterministic_algorithms(True)
            # Filling fresh memory with NaN is a debugging aid that costs a write of every tensor.
            switches.fill_uninitialized_memory = False
        with warnings.catch_warnings():
            # torch says both once in a process that touches a sparse matrix; neither is for the user to act on.
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            warnings.filterwarnings("ignore", "Sparse invariant checks are implicitly disabled")
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        switches.fill_uninitialized_memory = fill
