"""One training step of a copy of the model on a probe, with every saved tensor and every allocation written down."""

from __future__ import annotations

import copy
import gc
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from graphlossy._compress import compress, restore
from graphlossy._plan._probe import Forward
from graphlossy._plan._schemes import Scheme
from graphlossy._plan._tracker import AllocationTracker
from graphlossy.core.ledger import GRADIENTS

__all__ = ["Trace", "step_trace"]

STEPS = 2  # the first may fill caches (a normalised graph, a CSR copy); the second is like all that follow


@dataclass(frozen=True)
class Trace:
    """What one probe showed.

    Attributes:
        record_keys: (module, operation, form) of each saved tensor, in order.
        saved: bytes of each, metadata included.
        event_keys: each torch operation, in order.
        live: bytes alive after each, beyond the model, its gradients and the input.
        cached: bytes still alive when the step is over.
        gradient: ``"exact"``, ``"unbiased"`` or ``"approximate"``: the worst of the saved tensors.
    """

    record_keys: tuple[tuple[str, ...], ...]
    saved: tuple[int, ...]
    event_keys: tuple[str, ...]
    live: tuple[int, ...]
    cached: int
    gradient: str

    @property
    def saved_bytes(self) -> int:
        """Bytes saved for the backward pass."""
        return sum(self.saved)

    @property
    def peak_bytes(self) -> int:
        """Most bytes alive at one time."""
        return max(self.live, default=0)


def step_trace(model: nn.Module, probe: Any, forward: Forward, scheme: Scheme, route: bool, seed: int,
               device: torch.device) -> Trace:  # fmt: skip
    """Runs forward and backward of a copy of ``model``; the model and torch's generators stay as they are."""
    twin = _copy(model)
    scheme.prepare(twin)
    devices = [device] if device.type == "cuda" else []
    tracker = AllocationTracker()
    collecting = gc.isenabled()
    gc.disable()  # when garbage is collected must not decide which bytes count as alive
    try:
        with (
            torch.random.fork_rng(devices),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(device.type, enabled=False),
        ):
            torch.manual_seed(seed)
            saving = compress(bits=scheme.bits, route=route, seed=seed)
            parameters = [p for p in twin.parameters() if p.requires_grad]
            handles = [p.register_post_accumulate_grad_hook(lambda p: _exclude(tracker, p)) for p in parameters]
            with tracker:
                for _ in range(STEPS):
                    for p in parameters:
                        p.grad = None
                    with saving as ledger, scheme.precision(device):
                        loss = forward(twin, probe)
                        _check_loss(loss)
                    loss.backward()
                    del loss
                    if not tracker.live_bytes:
                        break  # nothing was cached: the next step would be the same
            for handle in handles:
                handle.remove()
    finally:
        if collecting:
            gc.enable()
    records = ledger.records
    kinds = {r.gradient for r in records} | {"exact"}
    worst = "approximate" if scheme.autocast else next(g for g in reversed(GRADIENTS) if g in kinds)
    return Trace(
        record_keys=tuple((r.module, r.op, r.how, r.dtype) for r in records),
        saved=tuple(r.saved_bytes for r in records),
        event_keys=tuple(name for name, _ in tracker.events),
        live=tuple(live for _, live in tracker.events),
        cached=tracker.live_bytes,
        gradient=worst,
    )


def _exclude(tracker: AllocationTracker, parameter: Tensor) -> None:
    if parameter.grad is not None:
        tracker.exclude(parameter.grad)


def _copy(model: nn.Module) -> nn.Module:
    """A copy in training mode, without gradients, compression, or what PyG's layers cached of another graph."""
    model = getattr(model, "_orig_mod", model)  # what torch.compile was given
    forgotten: dict[int, Any] = {}
    for module in model.modules():
        for name, value in vars(module).items():
            if name.startswith("_cached") and value is not None:
                forgotten[id(value)] = None
    for parameter in model.parameters():
        if parameter.grad is not None:
            forgotten[id(parameter.grad)] = None
    try:
        twin = copy.deepcopy(model, forgotten)
    except Exception as error:
        raise ValueError(
            f"model: {type(model).__name__} cannot be copied ({error}), and a plan must not touch the original; "
            "keep only parameters, buffers and plain values as its attributes"
        ) from error
    for parameter in twin.parameters():
        parameter.grad = None
    return restore(twin).train()


def _check_loss(loss: Any) -> None:
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"forward(model, probe) must return the loss, one number with a gradient; got {what}")
