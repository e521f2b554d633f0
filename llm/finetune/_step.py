"""One optimiser step: forward and backward passes of its batches, the gradient's norm, AdamW."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from graphlossy.core._memory import is_out_of_memory
from graphlossy.core.ledger import Ledger
from graphlossy.llm.finetune._config import FinetuneConfig
from graphlossy.llm.finetune._data import Batches
from graphlossy.llm.finetune._errors import FinetuneError, user_errors
from graphlossy.llm.finetune._evaluation import autocast, inputs_of
from graphlossy.llm.finetune._lossy import by_operation, counted
from graphlossy.llm.finetune._memory import StepMemory
from graphlossy.llm.finetune._schedule import learning_rate, warmup_steps
from graphlossy.llm.finetune._surroundings import trainable

__all__ = ["Stepper"]

# What a step needs beyond what was in use is measured in these (the first one also makes AdamW's state) and the last.
MEASURED = (2, 3)


class Stepper:
    """Trains a model, a step at a time.

    Args:
        model: in training mode, on ``device``.
        config: the settings.
        batches: the sequences of every step.
        steps: of the whole run.
        device: where the model is.
        ledger: of the switched model; None: it is plain, and its bytes are counted whenever a batch has a new shape.

    Attributes:
        operations: bytes by operation of the forward pass that kept most so far.
        memory_kind: a key of `PEAK_KINDS`.
    """

    def __init__(
        self, model: nn.Module, config: FinetuneConfig, batches: Batches, steps: int, device: torch.device,
        ledger: Ledger | None,
    ) -> None:  # fmt: skip
        self.model, self.config, self.batches, self.steps, self.device = model, config, batches, steps, device
        self.ledger = ledger
        self.warmup = warmup_steps(config.warmup, steps)
        self.weights = trainable(model)
        # Decay pulls weights of matrices to 0; norms and biases have a place of their own to be at.
        groups = [
            {"params": [p for p in self.weights if p.dim() >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in self.weights if p.dim() < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=config.lr)
        self.operations: list[dict[str, Any]] = []
        self._memory = StepMemory(device)
        self.memory_kind = self._memory.kind
        self._known: dict[Any, tuple[int, int, list[dict[str, Any]]]] = {}

    def run(self, step: int) -> dict[str, Any]:
        """Does step number ``step``, from 1; returns the line of the log.

        Raises:
            FinetuneError: the loss or the gradient is not finite (the weights are those of the step before), there is
                not enough memory, or a byte budget cannot be met.
        """
        exact = step in MEASURED or step == self.steps
        batches = self.batches.of_step(step)
        targets = [int(self.batches.data.targets(batch["sample_ids"]).sum()) for batch in batches]
        rate = learning_rate(step, self.steps, self.config.lr, self.config.schedule, self.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._memory.start(exact)
        self._synchronize()
        start = time.perf_counter()
        try:
            loss, saved, plain = self._backward(batches, targets)
            norm = self._update(step, loss)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise FinetuneError(
                f"not enough memory in step {step}; give a smaller --batch-size with more --accumulate, fewer --bits, "
                "or --gradient-checkpointing"
            ) from None
        self._synchronize()
        seconds = time.perf_counter() - start
        peak, beyond = self._memory.stop()
        return {
            "step": step,
            "epoch": self.batches.epoch_of(step),
            "loss": loss,
            "lr": rate,
            "grad_norm": norm,
            "seconds": seconds,
            "tokens": sum(batch["input_ids"].numel() for batch in batches),
            "saved_bytes": saved,
            "plain_bytes": plain,
            "peak_bytes": peak,
            "step_peak_bytes": beyond if exact else None,
        }

    def _update(self, step: int, loss: float) -> float:
        """Clips the gradient, takes the step and forgets the gradient; returns its norm before."""
        norm = float(nn.utils.clip_grad_norm_(self.weights, self.config.clip or math.inf))
        for name, value in (("loss", loss), ("norm of the gradient", norm)):
            if not math.isfinite(value):
                self.optimizer.zero_grad(set_to_none=True)
                raise FinetuneError(f"the {name} became {value} in step {step}; lower --lr (now {self.config.lr:g})")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _backward(self, batches: list[dict[str, Tensor]], targets: list[int]) -> tuple[float, int, int]:
        """The mean loss over all predictions of the step, and saved and plain bytes of its largest forward pass."""
        loss, most, plain_most = 0.0, 0, 0
        for batch, count in zip(batches, targets, strict=True):
            part, saved, plain, operations = self._forward(batch)
            # The mean of a batch, weighed so that every prediction of the step counts the same.
            part = part * (count / sum(targets))
            part.backward()
            loss += float(part.detach())
            if saved >= most:
                most, plain_most = saved, plain
            if saved >= sum(row["saved_bytes"] for row in self.operations):
                self.operations = operations
        return loss, most, plain_most

    def _forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, int, int, list[dict[str, Any]]]:
        inputs = inputs_of(batch, self.device, self.config.needs_sample_ids)
        shape = tuple((name, tuple(value.shape)) for name, value in inputs.items())
        count = self.ledger is None and shape not in self._known
        with counted(self.model) if count else nullcontext(self.ledger) as ledger:
            with autocast(self.device, self.config.dtype), user_errors():
                loss = self.model(**inputs).loss
            if ledger is not None:
                known = ledger.saved_bytes, ledger.plain_bytes, by_operation(ledger)
                self._known[shape] = known
        return loss, *self._known[shape]

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
