"""The training loop of every deep detector: seeded, compressed where asked for, with its losses, bytes and seconds."""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from graphlossy._compress import Ledger, compress
from graphlossy.autograd._packed import check_bits
from graphlossy.outliers._base import Detector
from graphlossy.outliers._checks import Graph, check_number

__all__ = ["DeepDetector", "seeded"]

# Columns of a sampled structure error in the epoch whose errors are the scores.
_SCORED = 16_384
_SMALL = frozenset({"enron", "disney", "books", "dgraph"})
_LARGE = 1e6  # products and sums of squares of features beyond this may leave float32


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """torch's generators of the CPU and of ``device`` start from ``seed`` inside and are as before afterwards.

    Example:
        >>> before = torch.get_rng_state()
        >>> with seeded(3):
        ...     a = torch.rand(())
        >>> with seeded(3):
        ...     b = torch.rand(())
        >>> bool(a == b), torch.equal(before, torch.get_rng_state())
        (True, True)
    """
    device = torch.device(device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


class DeepDetector(Detector):
    """A detector that trains a network by Adam on the whole graph and scores the nodes by their own part of the loss.

    As in PyGOD the scores are those of the last training pass, dropout included, from before its step; scores of
    another graph (:meth:`decision_function`) are made in evaluation mode. A run is bitwise reproducible for one seed,
    one device and one number of threads.

    Args:
        hid_dim: width of the hidden layers.
        num_layers: layers of encoder and decoder together.
        dropout: share of the hidden elements set to zero in training, in [0, 1].
        weight_decay: L2 penalty of Adam.
        lr: step size of Adam.
        epoch: training passes over the graph.
        bits: width at which activations are kept for the backward pass (``graphlossy.compress``): 1, 2, 3, 4, 8, or
            None for exact gradients.
        device: where it is trained, ``"cpu"`` or ``"cuda"``.
        verbose: 1 prints the loss of every epoch.
        **base: contamination, seed (:class:`~graphlossy.outliers.Detector`).

    Attributes:
        losses_: the loss of each epoch, floats.
        epoch_seconds_: the seconds of each epoch, floats.
        saved_bytes_: bytes that the largest forward pass of an epoch keeps for its backward pass (of the last epoch
            with ``bits``, the first without).
        plain_bytes_: bytes that it keeps without compression.
        model_: the trained module.
    """

    seeded: ClassVar[bool] = True

    losses_: list[float]
    epoch_seconds_: list[float]
    saved_bytes_: int
    plain_bytes_: int
    model_: nn.Module

    def __init__(
        self,
        *,
        hid_dim: int = 64,
        num_layers: int = 4,
        dropout: float = 0.0,
        weight_decay: float = 0.0,
        lr: float = 4e-3,
        epoch: int = 100,
        bits: int | None = None,
        device: torch.device | str = "cpu",
        verbose: int = 0,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.hid_dim = check_number("hid_dim", hid_dim, 1, integer=True)
        self.num_layers = check_number("num_layers", num_layers, 1, integer=True)
        self.dropout = float(check_number("dropout", dropout, 0, 1))
        self.weight_decay = float(check_number("weight_decay", weight_decay, 0))
        self.lr = float(check_number("lr", lr, 0, open_low=True))
        self.epoch = check_number("epoch", epoch, 1, integer=True)
        check_bits(bits)
        self.bits = bits
        self.device = _device(device)
        self.verbose = verbose

    @abstractmethod
    def _build(self, graph: Graph) -> nn.Module:
        """The untrained network for this graph; torch's generator is seeded."""

    @abstractmethod
    def _loss(self, module: nn.Module, graph: Graph) -> tuple[Tensor, Tensor]:
        """One forward pass: the score of each node [N], and the loss, a scalar."""

    def _optimizers(self, module: nn.Module) -> tuple[torch.optim.Optimizer, ...]:
        """What :meth:`_step` steps; Adam over all parameters."""
        return (torch.optim.Adam(module.parameters(), lr=self.lr, weight_decay=self.weight_decay),)

    def _step(
        self, module: nn.Module, graph: Graph, optimizers: tuple[torch.optim.Optimizer, ...]
    ) -> tuple[Tensor, float]:
        """One epoch: the scores [N] from before the step, and the loss. Adversarial methods have their own."""
        with self._forward():
            score, loss = self._loss(module, graph)
        self._descend(loss, *optimizers)
        return score.detach(), float(loss.detach())

    def _columns_drawn(self, samples: int) -> int:
        """``samples``, and many more in the epoch whose errors are the scores, and when another graph is scored.

        Training averages the noise of few columns over its epochs; a ranking of the nodes does not.
        """
        return max(samples, _SCORED) if len(self.losses_) >= self.epoch - 1 else samples

    def _descend(self, loss: Tensor, *optimizers: torch.optim.Optimizer) -> None:
        """One step down the gradient of ``loss``, unless it is not finite."""
        _finite(float(loss.detach()), len(self.losses_), self)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()

    @contextmanager
    def _forward(self) -> Iterator[None]:
        """Around each forward pass with gradients: compresses what it saves, and counts it."""
        if self.bits is None and self._counted:
            yield
            return
        # Without bits this counts only, which takes time, so one epoch is enough; route=False leaves values bitwise.
        # The seed of the rounding is no draw from torch's generator: dropout is the same with and without bits.
        done = (len(self.losses_) << 8) + len(self._ledgers)
        seed = (self.seed_ + (done + 1) * 0x9E3779B97F4A7C15) % 2**63
        with compress(bits=self.bits, route=self.bits is not None, seed=seed) as ledger:
            yield
        self._ledgers.append(ledger)

    def _score(self, graph: Graph) -> Tensor:
        graph = graph.to(self.device)
        self.losses_, self.epoch_seconds_ = [], []
        self._counted = False
        self._largest = max(map(abs, map(float, graph.x.aminmax()))) if graph.x.numel() else 0.0
        score = graph.x.new_zeros(graph.num_nodes)
        with seeded(self.seed_, self.device):
            module = self._build(graph).to(self.device)
            optimizers = self._optimizers(module)
            module.train()
            for epoch in range(self.epoch):
                self._ledgers: list[Ledger] = []
                start = time.perf_counter()
                score, loss = self._step(module, graph, optimizers)
                _finite(loss, epoch, self)
                self.epoch_seconds_.append(time.perf_counter() - start)
                self.losses_.append(loss)
                self._count()
                if self.verbose:
                    print(f"{self.title} epoch {epoch + 1}/{self.epoch} loss {loss:.6f}", flush=True)
                if self.on_epoch is not None:
                    self.on_epoch(epoch, loss)
        self.model_ = module.eval()
        return score

    def _count(self) -> None:
        if self._ledgers:
            # Each pass is freed by its backward pass before the next one starts: the largest is what is held at a time.
            largest = max(self._ledgers, key=lambda ledger: ledger.plain_bytes)
            self.saved_bytes_, self.plain_bytes_ = largest.saved_bytes, largest.plain_bytes
        self._counted, self._ledgers = True, []

    def _score_new(self, graph: Graph) -> Tensor:
        fitted = getattr(self.model_, "num_features", None)
        if fitted is not None and graph.num_features != fitted:
            raise ValueError(
                f"{self.title} was fitted to {fitted} features a node, this graph has {graph.num_features}: "
                "they must agree"
            )
        with torch.no_grad(), seeded(self.seed_, self.device):
            return self._loss(self.model_, graph.to(self.device))[0]

    @classmethod
    def search_space(cls, dataset: str) -> dict[str, tuple[Any, ...]]:
        """BOND's draws that all deep methods share (Liu et al., NeurIPS 2022, appendix)."""
        widths = (8, 12, 16) if dataset in _SMALL else (32, 48, 64) if dataset == "reddit" else (32, 64, 128, 256)
        return {
            "hid_dim": widths,
            "dropout": (0.0, 0.1, 0.3),
            "lr": (0.1, 0.05, 0.01),
            "weight_decay": (0.01,),
            "epoch": (300,),
        }


def _finite(loss: float, epoch: int, detector: DeepDetector) -> None:
    if not math.isfinite(loss):
        advice = "try a smaller lr"
        if epoch == 0 and detector._largest > _LARGE:
            advice = f"the features reach {detector._largest:.3g}; scale them, such as by x / x.abs().max()"
        raise FloatingPointError(
            f"the loss of {detector.title} is {loss} in epoch {epoch + 1} of {detector.epoch} "
            f"(lr {detector.lr}, weight_decay {detector.weight_decay}): {advice}"
        )


def _device(device: torch.device | str) -> str:
    wrong = f"device must be 'cpu', 'cuda' or 'cuda:0', got {device!r}"
    try:
        parsed = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(wrong) from error
    if parsed.type not in ("cpu", "cuda"):
        raise ValueError(wrong)
    if parsed.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {device!r}, but torch sees no CUDA device: use 'cpu'")
    if parsed.type == "cuda" and (parsed.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device is {device!r}, but the last that torch sees is cuda:{torch.cuda.device_count() - 1}")
    return str(parsed)
