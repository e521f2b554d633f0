"""Gradients that travel between processes in few bits: a communication hook for DistributedDataParallel.

Every process rounds its own gradient (`graphlossy.core.quantize`, stochastic, unbiased), all of them gather the codes,
and each one averages the values it unpacks: the same bits everywhere. After QSGD (Alistarh et al., NeurIPS 2017,
section 3). With error feedback (Karimireddy et al., ICML 2019, algorithm 2) what was lost is added to the next
gradient.
"""

# No postponed annotations here: DistributedDataParallel compares the hook's annotations with the classes themselves.

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from graphlossy.core import QuantizedTensor, quantize
from graphlossy.train._ddp_seed import mix_seed

__all__ = ["QuantizedState", "compress_gradients", "quantized_hook"]

BITS = (1, 2, 3, 4, 8)


class QuantizedState:
    """Settings, step number, byte count and (with error feedback) what is still to be sent.

    Args:
        bits: bits of a code: 1, 2, 3, 4 or 8.
        group_size: elements that share a scale and an offset (4 bytes together); groups never span two parameters.
        error_feedback: add what rounding lost to the next gradient of the same parameter. Values are then rounded to
            the nearest code and every group is shrunk by its least-squares factor, which makes the error smaller than
            the gradient at every width; a single step is no longer unbiased. Costs a float32 copy of the gradient.
        seed: of the rounding noise; the noise is a function of (seed, step, rank, parameter).
        exact_below: parameters with fewer elements (biases, norms) are sent as they are.
        process_group: None for all processes.

    Attributes:
        steps: backward passes that were averaged.
        bytes_sent: bytes this process has put on the wire: its payload once for every other process.
        bytes_plain: bytes that a ring all-reduce of the same gradients would have sent, 2 (W - 1) / W of their size.

    Raises:
        ValueError: ``bits`` or ``exact_below`` is not allowed.

    Example:
        >>> state = QuantizedState(bits=4)
        >>> state.steps, state.bytes_sent
        (0, 0)
        >>> QuantizedState(bits=5)
        Traceback (most recent call last):
        ...
        ValueError: bits must be 1, 2, 3, 4 or 8, got 5
    """

    def __init__(
        self,
        bits: int = 4,
        group_size: int = 256,
        error_feedback: bool = False,
        seed: int = 0,
        exact_below: int = 1024,
        process_group: Any = None,
    ) -> None:
        if isinstance(bits, bool) or bits not in BITS:
            raise ValueError(f"bits must be 1, 2, 3, 4 or 8, got {bits!r}")
        if isinstance(exact_below, bool) or not isinstance(exact_below, int) or exact_below < 1:
            raise ValueError(f"exact_below must be a number of elements from 1, got {exact_below!r}")
        quantize(torch.zeros(8), bits, group_size, seed=seed)  # a wrong group_size or seed shows here
        self.bits, self.group_size, self.error_feedback = bits, group_size, error_feedback
        self.seed, self.exact_below, self.process_group = seed, exact_below, process_group
        self.steps = self.bytes_sent = self.bytes_plain = 0
        self._residuals: dict[int, Tensor] = {}
        self._numbers: dict[int, int] = {}
        self._parameters: list[Tensor] = []  # kept alive, so that an id() stays theirs

    @property
    def ratio(self) -> float:
        """Bytes of a plain all-reduce for each byte sent; 1 before the first step."""
        return self.bytes_plain / self.bytes_sent if self.bytes_sent else 1.0

    def state_dict(self) -> dict[str, Any]:
        """What the next step of this process depends on; with error feedback every process has its own."""
        residuals = {number: residual.cpu() for number, residual in self._residuals.items()}
        counts = {"steps": self.steps, "bytes_sent": self.bytes_sent, "bytes_plain": self.bytes_plain}
        return {**counts, "residuals": residuals}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts this process where :meth:`state_dict` was taken."""
        self.steps, self.bytes_sent, self.bytes_plain = (state[k] for k in ("steps", "bytes_sent", "bytes_plain"))
        self._residuals = {int(number): residual.clone() for number, residual in state["residuals"].items()}

    @staticmethod
    def merge(states: list[dict[str, Any]]) -> dict[str, Any]:
        """One state for every process of a run that goes on with another number of them: the mean of what is unsent.

        Args:
            states: of all processes that there were, in the order of their ranks.
        """
        numbers = sorted({number for state in states for number in state["residuals"]})
        mean = {k: torch.stack([state["residuals"][k] for state in states]).mean(0) for k in numbers}
        return {**states[0], "residuals": mean}

    # -- used by the hook -------------------------------------------------------------------------------------------

    def number(self, parameter: Tensor) -> int:
        """The parameter's number: in the order of the first backward pass, which is the same in every process."""
        if id(parameter) not in self._numbers:
            self._numbers[id(parameter)] = len(self._parameters)
            self._parameters.append(parameter)
        return self._numbers[id(parameter)]

    def encode(self, gradient: Tensor, number: int, rank: int) -> QuantizedTensor | None:
        """The gradient of one parameter as it is sent; None if it is sent exactly."""
        if gradient.numel() < self.exact_below or not gradient.is_floating_point():
            return None
        flat = gradient.detach().reshape(-1)
        if not self.error_feedback:
            seed = mix_seed(self.seed, self.steps, rank, number)
            return quantize(flat, self.bits, self.group_size, dim=None, seed=seed)
        flat = flat.float()
        if number in self._residuals:
            self._residuals[number] = self._residuals[number].to(flat.device)
            flat = flat + self._residuals[number]
        sent = _shrink(quantize(flat, self.bits, self.group_size, "nearest", dim=None), flat)
        lost = flat - sent.dequantize()
        # A gradient that overflowed arrives as NaN; it must not stay in the memory of the steps that follow.
        self._residuals[number] = torch.where(lost.isfinite(), lost, 0.0)
        return sent


def compress_gradients(model: nn.Module, bits: int = 4, **settings: Any) -> QuantizedState:
    """Sends the gradients of a wrapped model in ``bits`` bits from now on; returns the state with the byte counts.

    Args:
        model: the DistributedDataParallel that :func:`graphlossy.train.distributed.wrap` returned.
        bits: bits of a code: 1, 2, 3, 4 or 8.
        settings: see :class:`QuantizedState`.

    Raises:
        TypeError: ``model`` is not wrapped: there is one process, which sends nothing.
        ValueError: a setting is not allowed.

    Example:
        >>> compress_gradients(torch.nn.Linear(2, 2))
        Traceback (most recent call last):
        ...
        TypeError: model must be a DistributedDataParallel, got Linear; wrap it first, in a run of several processes
    """
    if not isinstance(model, DistributedDataParallel):
        kind = type(model).__name__
        raise TypeError(
            f"model must be a DistributedDataParallel, got {kind}; wrap it first, in a run of several processes"
        )
    state = QuantizedState(bits, **settings)
    model.register_comm_hook(state, quantized_hook)
    return state


def quantized_hook(state: QuantizedState, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Averages one bucket of gradients over all processes: ``model.register_comm_hook(state, quantized_hook)``.

    The values are averaged in float32, in the order of the ranks, from the codes of all processes (its own too): every
    process holds the same bits afterwards. A NaN or an infinity anywhere makes its group NaN everywhere.

    Args:
        state: settings and counters of this process.
        bucket: flattened gradients of some parameters.
    """
    group = state.process_group if state.process_group is not None else dist.group.WORLD
    rank, world_size = dist.get_rank(group), dist.get_world_size(group)
    gradients = bucket.gradients()
    numbers = [state.number(parameter) for parameter in bucket.parameters()]
    codes = [state.encode(gradient, k, rank) for gradient, k in zip(gradients, numbers, strict=True)]
    payload = torch.cat([p for gradient, code in zip(gradients, codes, strict=True) for p in _pieces(gradient, code)])
    received = payload.new_empty(world_size, payload.numel())
    size = sum(gradient.numel() * gradient.element_size() for gradient in gradients)
    state.bytes_sent += (world_size - 1) * payload.numel()
    state.bytes_plain += 2 * (world_size - 1) * size // world_size
    state.steps += bool(bucket.is_last())
    work = _all_gather(received.view(-1), payload, group)

    def average(_: Any = None) -> Tensor:
        with torch.no_grad():
            start = 0
            for gradient, code in zip(gradients, codes, strict=True):
                sizes = [piece.numel() for piece in _pieces(gradient, code)]
                parts = [part.clone() for part in received[:, start : start + sum(sizes)].split(sizes, dim=1)]
                gradient.copy_(_mean(parts, gradient, code))
                start += sum(sizes)
        return bucket.buffer()

    if payload.is_cuda:
        return work.get_future().then(average)
    # Not as a callback: gloo would run it in a thread of its own, which may still hold Python objects at exit.
    work.wait()
    done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    done.set_result(average())
    return done


def _all_gather(received: Tensor, payload: Tensor, group: Any) -> Any:
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its name before torch 2.13
    return gather(received, payload, group=group, async_op=True)


def _pieces(gradient: Tensor, code: QuantizedTensor | None) -> list[Tensor]:
    """What is sent for one parameter, as uint8 vectors whose sizes depend on shapes alone."""
    tensors = [gradient.contiguous()] if code is None else [code.packed, code.scale, code.offset]
    return [tensor.reshape(-1).view(torch.uint8) for tensor in tensors]


def _mean(parts: list[Tensor], gradient: Tensor, code: QuantizedTensor | None) -> Tensor:
    """The mean over the ranks of one parameter's gradient, from parts that are uint8 [world size, bytes]."""
    if code is None:
        values = parts[0].view(gradient.dtype)
        values = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
    else:
        packed, scale, offset = parts[0], parts[1].view(torch.bfloat16), parts[2].view(torch.bfloat16)
        values = torch.ops.graphlossy.dequantize(
            packed, scale, offset, code.bits, code.group_size, code.numel(), torch.float32
        )
    total = values[0].clone()
    for value in values[1:]:
        total += value
    return (total / len(values)).view(gradient.shape)


def _shrink(code: QuantizedTensor, x: Tensor) -> QuantizedTensor:
    """Multiplies every group by <x, q> / <q, q>, the factor that makes it nearest to x; costs no bytes."""
    size, groups = code.group_size, code.scale.numel()
    padding = groups * size - x.numel()
    wanted, found = (
        nn.functional.pad(values.nan_to_num(0.0, 0.0, 0.0), (0, padding)).view(groups, size).double()
        for values in (x, code.dequantize())
    )
    factor = (wanted * found).sum(1) / found.square().sum(1)
    factor = torch.where(factor.isfinite(), factor.clamp(min=0.0), 1.0)  # a group of zeros, or one that overflowed
    code.scale, code.offset = ((tensor.double() * factor).to(torch.bfloat16) for tensor in (code.scale, code.offset))
    return code
