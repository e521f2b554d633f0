"""One training step of a copy of the model on a probe, with every saved tensor and every allocation written down."""

from __future__ import annotations

import copy
import gc
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from graphlossy._compress import compress, restore
from graphlossy._compress._bits import BudgetPolicy
from graphlossy._plan._probe import Forward
from graphlossy._plan._schemes import Scheme
from graphlossy._plan._tracker import AllocationTracker
from graphlossy.core.ledger import GRADIENTS

__all__ = ["Rounded", "Trace", "step_trace"]

STEPS = 2  # the first may fill caches (a normalised graph, a CSR copy); the second is like all that follow


AMPLE = 2**62  # a budget that lowers no width


@dataclass(frozen=True)
class Rounded:
    """A tensor whose width a budget chooses.

    Attributes:
        elements: how many.
        bytes: at 8 bits, metadata included.
        least_bits: fewest that its operation allows.
        sensitivity: variance that rounding it adds to the gradient, as ``compress`` estimates it.
    """

    elements: int
    bytes: int
    least_bits: int
    sensitivity: float


@dataclass(frozen=True)
class Trace:
    """What one probe showed.

    Attributes:
        record_keys: (module, operation, form) of each tensor in the ledger, in order; empty without compression.
        saved: bytes of each, metadata included; without compression the bytes alive between forward and backward.
        event_keys: each torch operation, in order.
        live: bytes alive after each, beyond the model, its gradients and the input.
        cached: bytes still alive when the step is over.
        gradient: ``"exact"``, ``"unbiased"`` or ``"approximate"``: the worst of the saved tensors.
        rounded: under a budget, the tensors whose width it chooses.
    """

    record_keys: tuple[tuple[str, ...], ...]
    saved: tuple[int, ...]
    event_keys: tuple[str, ...]
    live: tuple[int, ...]
    cached: int
    gradient: str
    rounded: tuple[Rounded, ...]

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
    """Runs forward and backward of a copy of ``model``; the model and all random generators stay as they are.

    Under a budget everything keeps 8 bits here: which widths it leads to follows from :attr:`Trace.rounded`.
    """
    twin = _copy(model)
    scheme.prepare(twin)
    tracker = AllocationTracker()
    collecting = gc.isenabled()
    gc.disable()  # when garbage is collected must not decide which bytes count as alive
    try:
        with (
            _generators_kept(device),
            _one_thread(),
            warnings.catch_warnings(),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(device.type, enabled=False),
        ):
            warnings.filterwarnings("ignore", "Sparse (CSR tensor support|invariant checks)")
            torch.manual_seed(seed)
            compressed = scheme.bits is not None or scheme.budget is not None
            budget = None if scheme.budget is None else AMPLE
            saving = compress(bits=scheme.bits, budget=budget, route=route, seed=seed) if compressed else None
            parameters = [p for p in twin.parameters() if p.requires_grad]
            for p in parameters:
                p.register_post_accumulate_grad_hook(lambda p: _exclude(tracker, p))
            with tracker:
                for _ in range(STEPS):
                    for p in parameters:
                        p.grad = None
                    before = tracker.live_bytes
                    with saving or nullcontext() as ledger, scheme.precision(device):
                        loss = forward(twin, probe)
                        _check_loss(loss)
                    gc.collect(0)
                    held = tracker.live_bytes - before - loss.untyped_storage().nbytes()
                    loss.backward()
                    del loss
                    if not tracker.live_bytes:
                        break  # nothing was cached: the next step would be the same
    finally:
        if collecting:
            gc.enable()
    records = [] if ledger is None else ledger.records
    kinds = {r.gradient for r in records} | {"exact"}
    lossy = scheme.autocast or any(_rounds(module) for module in twin.modules())
    worst = "approximate" if lossy else next(g for g in reversed(GRADIENTS) if g in kinds)
    return Trace(
        record_keys=tuple((r.module, r.op, r.how, r.dtype) for r in records),
        saved=(held,) if ledger is None else tuple(r.saved_bytes for r in records),
        event_keys=tuple(name for name, _ in tracker.events),
        live=tuple(live for _, live in tracker.events),
        cached=tracker.live_bytes,
        gradient=worst,
        rounded=() if saving is None else _rounded(saving._settings.policy),
    )


def _rounded(policy: Any) -> tuple[Rounded, ...]:
    if not isinstance(policy, BudgetPolicy):
        return ()
    return tuple(Rounded(m.elements, m.entry.bytes, m.min_bits, m.sensitivity()) for m in policy._measured.values())


@contextmanager
def _one_thread() -> Iterator[None]:
    """Probes are small: a second thread is waited for longer than it saves, on a busy machine much longer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _generators_kept(device: torch.device) -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _rounds(module: nn.Module) -> bool:
    """Whether it is a layer of graphlossy.nn that stores low bits by itself."""
    return type(module).__module__.startswith("graphlossy.nn") and getattr(module, "bits", None) is not None


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
    try:
        twin = copy.deepcopy(model, forgotten)
    except Exception as error:
        raise ValueError(
            f"model: {type(model).__name__} cannot be copied ({error}), and a plan must not touch the original; "
            "keep only parameters, buffers and plain values as its attributes"
        ) from error
    return restore(twin).train()


def _check_loss(loss: Any) -> None:
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"forward(model, probe) must return the loss, one number with a gradient; got {what}")
