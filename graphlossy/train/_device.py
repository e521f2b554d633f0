"""Where to train, and how a device says that it is out of memory."""

from __future__ import annotations

import torch

from graphlossy.train._errors import TrainError

__all__ = ["resolve_device"]


def resolve_device(name: str) -> torch.device:
    """The torch device of a name; ``"auto"`` is CUDA where there is one.

    Raises:
        TrainError: the name is not known or this machine has no such device.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise TrainError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise TrainError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            why = "this torch was built without CUDA" if torch.version.cuda is None else "torch finds no CUDA device"
            raise TrainError(f"device {name} is not available: {why}; use --device cpu")
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise TrainError(
                f"device {name} is not available: there are {count} CUDA devices (cuda:0 to cuda:{count - 1})"
            )
    return device
