"""The device, and what fine-tuning changes in the process and in the model while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from graphlossy.llm.finetune._errors import FinetuneError

__all__ = ["model_settings", "resolve_device", "torch_settings", "trainable"]


def resolve_device(name: str) -> torch.device:
    """The torch device of a name; ``"auto"`` is CUDA where there is one.

    Raises:
        FinetuneError: the name is not known, or this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise FinetuneError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise FinetuneError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise FinetuneError(f"device {name} is not available: torch finds {torch.cuda.device_count()} CUDA devices")
    return device


@contextmanager
def torch_settings(threads: int | None, device: torch.device) -> Iterator[None]:
    """Inside this context torch has so many threads, a random stream apart, and on the CPU deterministic algorithms."""
    before = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    switches: Any = torch.utils.deterministic
    fill = switches.fill_uninitialized_memory
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
        try:
            if threads is not None:
                torch.set_num_threads(threads)
            if device.type == "cpu":
                torch.use_deterministic_algorithms(True)
                # Filling fresh memory with NaN is a debugging aid that costs a write of every tensor.
                switches.fill_uninitialized_memory = False
            yield
        finally:
            torch.set_num_threads(before)
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
            switches.fill_uninitialized_memory = fill


@contextmanager
def model_settings(model: Any, gradient_checkpointing: bool) -> Iterator[None]:
    """Inside this context a model trains, keeps no keys and values for generation, and checkpoints its blocks if asked.

    Raises:
        FinetuneError: the model cannot checkpoint its blocks.
    """
    training, use_cache = model.training, getattr(model.config, "use_cache", None)
    if gradient_checkpointing:
        if not getattr(model, "supports_gradient_checkpointing", False):
            raise FinetuneError(f"{type(model).__name__} has no gradient checkpointing; leave it out")
        # The reentrant kind does not run its blocks under saved-tensor hooks, and needs inputs with a gradient.
        if hasattr(model, "activation_checkpointing_enable"):  # transformers 5's name
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        else:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if use_cache is not None:
        model.config.use_cache = False
    model.train()
    try:
        yield
    finally:
        if use_cache is not None:
            model.config.use_cache = use_cache
        if gradient_checkpointing:
            if hasattr(model, "activation_checkpointing_disable"):
                model.activation_checkpointing_disable()
            else:
                model.gradient_checkpointing_disable()
        model.train(training)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The weights that are trained.

    Raises:
        FinetuneError: there is none.
    """
    found = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not found:
        raise FinetuneError("the model has no weight to train: all have requires_grad=False")
    return found
