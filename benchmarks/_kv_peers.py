"""Caches that ours are compared with: those of transformers in few bits, and keys rounded per token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer, QuantizedCache

from graphlossy.core import QuantizedTensor, quantize

__all__ = ["PEERS", "Peer", "installed"]


@dataclass(frozen=True)
class Peer:
    """A cache of transformers' ``QuantizedCache``, or with keys and values rounded per token.

    Attributes:
        name: of its row.
        arguments: of ``QuantizedCache``; None: per token.
        bits: of the numbers that are rounded per token.
    """

    name: str
    arguments: dict[str, Any] | None = None
    bits: int = 0

    def make(self, config: Any) -> Cache:
        """An empty cache.

        Raises:
            ImportError: the library of the back-end is missing.
        """
        if self.arguments is None:
            return PerTokenCache(config, self.bits)
        return CountedCache(config=config, **self.arguments)


def _backend(backend: str, nbits: int, **options: Any) -> dict[str, Any]:
    return {"backend": backend, "nbits": nbits, **options}


PEERS = {
    peer.name: peer
    for peer in (
        Peer("transformers fp8", {"backend": "fp8"}),
        Peer("transformers quanto int4", _backend("quanto", 4)),
        Peer("transformers quanto int4 g32", _backend("quanto", 4, q_group_size=32)),
        Peer("transformers quanto int2", _backend("quanto", 2)),
        Peer("transformers quanto int2 g32", _backend("quanto", 2, q_group_size=32)),
        Peer("transformers hqq int4", _backend("hqq", 4)),
        Peer("transformers hqq int4 axis 1", _backend("hqq", 4, axis_key=1, axis_value=1)),
        Peer("transformers hqq int2 axis 1", _backend("hqq", 2, axis_key=1, axis_value=1)),
        Peer("per token 4bit-w32", bits=4),
        Peer("per token 2bit-w32", bits=2),
    )
}


def installed(schemes: Sequence[Any], config: Any, data: dict[str, Any]) -> list[Any]:
    """Those that can be made; why the others cannot is noted in the results."""
    found = []
    for scheme in schemes:
        try:
            scheme.make(config)
        except ImportError as error:
            data.setdefault("left_out", {})[scheme.name] = str(error).strip().splitlines()[0]
            print(f"{scheme.name} is left out: {data['left_out'][scheme.name]}")
        else:
            found.append(scheme)
    return found


class CountedCache(QuantizedCache):
    """transformers' own, with its bytes."""

    def bytes_by_layer(self) -> list[dict[str, int]]:
        """Bytes of what is in the model's precision, scales and offsets included, and of all else."""
        found = []
        for layer in self.layers:
            held = list(_tensors([v for name, v in vars(layer).items() if name != "_pending_beam_idx"]))
            full = [t for t in held if t.dtype == self.layers[0].dtype]
            kinds = {"plain": sum(map(_bytes, full))}
            found.append({**kinds, "packed": sum(map(_bytes, held)) - kinds["plain"]})
        return found

    @property
    def nbytes(self) -> int:
        """Of all tensors."""
        return sum(sum(kinds.values()) for kinds in self.bytes_by_layer())

    @property
    def plain_bytes(self) -> int:
        """Of the same tokens in full precision."""
        states = [layer._dequantize(layer._quantized_keys) for layer in self.layers[:1]]
        numbers = states[0].numel() // states[0].shape[-2] * self.layers[0].cumulative_length * 2
        return numbers * states[0].element_size() * len(self.layers)


class PerTokenLayer(DynamicLayer):
    """Keys and values rounded per token in groups of 32 channels once 4 sinks and 32 to 63 recent tokens are spared.

    The numbers are kept as they are decoded, so that it can be short; the bytes are those of the codes and scales.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits, self.done, self.packed = bits, 4, 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends, and rounds afterwards."""
        found = super().update(key_states, value_states, *args, **kwargs)
        due = (found[0].shape[-2] - 32 - self.done) // 32 * 32
        if due > 0:
            here = slice(self.done, self.done + due)
            self.keys, self.values = self.keys.clone(), self.values.clone()
            for states in (self.keys, self.values):
                rounded: QuantizedTensor = quantize(states[:, :, here].contiguous(), self.bits, 32, rounding="nearest")
                states[:, :, here] = rounded.dequantize()
                self.packed += rounded.nbytes
            self.done += due
        return found


class PerTokenCache(Cache):
    """Keys per token, as values are, beside KIVI's per channel."""

    def __init__(self, config: Any, bits: int) -> None:
        super().__init__(layers=[PerTokenLayer(bits) for _ in range(config.num_hidden_layers)])

    def bytes_by_layer(self) -> list[dict[str, int]]:
        """Codes with their scales, and what is in full precision."""
        return [
            {"packed": layer.packed, "plain": self._plain(layer) * (layer.keys.shape[-2] - layer.done + 4)}
            for layer in self.layers
        ]

    @property
    def nbytes(self) -> int:
        """If codes were stored."""
        return sum(sum(kinds.values()) for kinds in self.bytes_by_layer())

    @property
    def plain_bytes(self) -> int:
        """Of the same tokens in full precision."""
        return sum(self._plain(layer) * layer.keys.shape[-2] for layer in self.layers)

    @staticmethod
    def _plain(layer: Any) -> int:
        """Bytes of a token."""
        return 2 * layer.keys[:, :, 0].numel() * layer.keys.element_size()


def _bytes(t: Tensor) -> int:
    return t.numel() * t.element_size()


def _tensors(value: Any) -> Iterator[Tensor]:
    """All plain tensors inside lists, dictionaries and tensors that wrap others."""
    if hasattr(value, "__tensor_flatten__"):
        yield from _tensors([getattr(value, name) for name in value.__tensor_flatten__()[0]])
    elif isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors(one)
