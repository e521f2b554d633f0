"""What a cache gives to an attention layer instead of tensors: they are made only where something else reads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

__all__ = ["ATTENTION", "LazyStates"]

ATTENTION = "graphlossy"  # the name of the attention implementation that takes them


class LazyStates:
    """Keys, or values, of one attention layer; any use as a tensor makes it one.

    Args:
        tensor: gives the states [B, H, T, D] in floating point.
    """

    def __init__(self, tensor: Callable[[], Tensor]) -> None:
        self.tensor = tensor

    def attend(self, query: Tensor, values: Any, call: Any) -> Tensor:
        """Attention [B, heads, Q, E] of these keys and the ``values`` that came with them.

        Args:
            query: [B, heads, Q, D].
            values: the other half.
            call: a :class:`graphlossy.llm.kv._attention.Call`.
        """
        raise TypeError(f"{type(self).__name__} is no key")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tensor(), name)

    def __getitem__(self, index: Any) -> Tensor:
        return self.tensor()[index]

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def plain(value: Any) -> Any:
            if isinstance(value, (list, tuple)):
                return type(value)(map(plain, value))
            return value.tensor() if isinstance(value, LazyStates) else value

        return function(*plain(args), **{name: plain(value) for name, value in (kwargs or {}).items()})
