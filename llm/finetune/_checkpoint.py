"""What a checkpoint holds of a run, and giving it back: trained weights, optimiser, switch, random streams, place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from graphlossy.llm.finetune import _lossy
from graphlossy.llm.finetune._errors import FinetuneError, one_line
from graphlossy.llm.finetune._model import frozen_fingerprint
from graphlossy.llm.finetune._step import Stepper

__all__ = ["give_back", "state_of"]


def state_of(stepper: Stepper, step: int, data: str) -> dict[str, Any]:
    """Tensors and plain values that a run goes on from; the weights themselves, not copies.

    Args:
        stepper: of the run.
        step: steps done, which say how far into the data it is.
        data: fingerprint of the training sequences.
    """
    state = {
        "settings": stepper.config.to_dict(),
        "data": data,
        "frozen": frozen_fingerprint(stepper.model),
        "step": step,
        "weights": {name: value.detach() for name, value in _trained(stepper.model).items()},
        "optimizer": stepper.optimizer.state_dict(),
        "lossy": _lossy.state(stepper.model),
        "rng": torch.get_rng_state(),
        "operations": stepper.operations,
    }
    if stepper.device.type == "cuda":
        state["rng_cuda"] = torch.cuda.get_rng_state(stepper.device)
    return state


def give_back(state: dict[str, Any], stepper: Stepper, data: str, folder: str) -> int:
    """Puts a model, its optimiser and torch's generators where :func:`state_of` found them; returns the steps done.

    Args:
        state: of the checkpoint.
        stepper: of the run that goes on, with the model it began with.
        data: fingerprint of its training sequences.
        folder: of the run, for messages.

    Raises:
        FinetuneError: settings, data or model are not those of the checkpoint.
    """
    changed = [name for name, value in stepper.config.to_dict().items() if state["settings"].get(name) != value]
    if changed:
        raise FinetuneError(f"config.json in {folder} was changed since the run began ({', '.join(changed)})")
    if state["data"] != data:
        raise FinetuneError(f"the training text changed since {folder} was begun; start a new run")
    if state["frozen"] != frozen_fingerprint(stepper.model):
        raise FinetuneError(f"the model is not the one that {folder} was begun with; start a new run")
    try:
        _load(_trained(stepper.model), state["weights"])
        stepper.optimizer.load_state_dict(state["optimizer"])
        _lossy.load_state(stepper.model, state["lossy"])
    except (RuntimeError, LookupError, TypeError, ValueError) as error:
        raise FinetuneError(f"the checkpoint in {folder} does not fit the model: {one_line(error)[:200]}") from None
    torch.set_rng_state(state["rng"])
    if stepper.device.type == "cuda":
        torch.cuda.set_rng_state(state["rng_cuda"], stepper.device)
    stepper.operations = state["operations"]
    return int(state["step"])


def _trained(model: nn.Module) -> dict[str, Tensor]:
    """What training changes; a tied weight once."""
    kept: dict[str, Tensor] = {name: value for name, value in model.named_parameters() if value.requires_grad}
    saved = model.state_dict().keys()
    return {**kept, **{name: value for name, value in model.named_buffers() if name in saved}}


@torch.no_grad()
def _load(values: dict[str, Tensor], saved: dict[str, Tensor]) -> None:
    for name, value in values.items():
        if saved[name].shape != value.shape:
            raise ValueError(f"{name} has shape {tuple(saved[name].shape)}, the model's has {tuple(value.shape)}")
        value.copy_(saved[name])
