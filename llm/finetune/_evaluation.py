"""Held-out loss, and accuracy of classes, from exact forward passes."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from graphlossy.llm.finetune._data import TokenDataset

__all__ = ["autocast", "evaluate", "inputs_of"]


def autocast(device: torch.device, dtype: str) -> AbstractContextManager[Any]:
    """bfloat16 autocast for ``"bf16"``, nothing for ``"float32"``."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bf16")


def inputs_of(batch: dict[str, Tensor], device: torch.device, sample_ids: bool) -> dict[str, Tensor]:
    """The model's arguments: the batch on its device, its ids only where they are needed."""
    inputs = {name: value.to(device) for name, value in batch.items() if name != "sample_ids"}
    return {**inputs, "sample_ids": batch["sample_ids"]} if sample_ids else inputs


@torch.no_grad()
def evaluate(
    model: nn.Module, data: TokenDataset, batch_size: int, dtype: str = "float32", most: int | None = None
) -> dict[str, float]:
    """Mean loss per prediction in evaluation mode, where nothing is compressed; the model's mode is put back.

    Args:
        model: a transformers model; it is given ``labels``.
        data: the sequences.
        batch_size: of one forward pass.
        dtype: ``"float32"`` or ``"bf16"``.
        most: read the first so many sequences only.

    Returns:
        ``valid_loss``, and ``valid_accuracy`` where the sequences have classes.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    total, count, right = 0.0, 0, 0
    try:
        for indices in torch.arange(min(len(data), most or len(data))).split(batch_size):
            batch = data.batch(indices)
            targets = int(data.targets(indices).sum())
            with autocast(device, dtype):
                out = model(**inputs_of(batch, device, sample_ids=False))
            total += float(out.loss) * targets
            count += targets
            if data.classifies:
                right += int((out.logits.argmax(-1).cpu() == batch["labels"]).sum())
    finally:
        model.train(training)
    found = {"valid_loss": total / count if count else math.nan}
    return {**found, "valid_accuracy": right / count} if data.classifies else found
