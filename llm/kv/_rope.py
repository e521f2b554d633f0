"""The rotary position embedding of a model, to take it off queries and to average it over positions."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch
from torch import Tensor

__all__ = ["Rotary"]


class Rotary:
    """What an attention layer of transformers does to its queries to tell their positions (Su et al., RoFormer).

    It is linear in the query and in the cosines and sines, and the model's own functions do it, so halves or pairs,
    scaling and a part of the channels alone are as the model has them. A model without it changes nothing.

    Args:
        module: the attention layer.

    Raises:
        ValueError: the model has such an embedding in a form that is not known.
    """

    def __init__(self, module: Any) -> None:
        names = vars(sys.modules[type(module).__module__])
        kinds = [kind for name, kind in names.items() if name.endswith("RotaryEmbedding") and isinstance(kind, type)]
        self._apply = names.get("apply_rotary_pos_emb")
        if len(kinds) != (self._apply is not None):
            raise ValueError(
                f"how {type(module).__name__} embeds positions is not known: take another scorer, such as SnapKV()"
            )
        self._angles = kinds[0](config=module.config) if kinds else None
        self._options: dict[str, Any] = {}
        if self._angles is not None and "layer_type" in inspect.signature(self._angles.forward).parameters:
            self._options["layer_type"] = module.config.layer_types[module.layer_idx]

    def undo(self, query: Tensor, positions: Tensor) -> Tensor:
        """Queries [B, heads, Q, D] as they were before, given their positions [B, Q]."""
        if self._angles is None:
            return query
        cosines, sines = self._at(positions, query)
        return self._turned(query, cosines, -sines, cosines.square() + sines.square())

    def mean_matrix(self, positions: Tensor, like: Tensor) -> Tensor:
        """[B, D, D]: a query [D] times it is what the query becomes, the mean over positions [B, n].

        Args:
            positions: of which the mean is taken.
            like: gives D, the dtype and the device.
        """
        unit = torch.eye(like.shape[-1], dtype=like.dtype, device=like.device).expand(len(positions), 1, -1, -1)
        if self._angles is None:
            return unit[:, 0]
        cosines, sines = (t.mean(1, keepdim=True) for t in self._at(positions, like))
        return self._turned(unit, cosines, sines, None)[:, 0]

    def _at(self, positions: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        angles = self._angles.to(like.device)
        found: tuple[Tensor, Tensor] = angles(like, positions, **self._options)
        return found

    def _turned(self, x: Tensor, cosines: Tensor, sines: Tensor, divisor: Tensor | None) -> Tensor:
        width = cosines.shape[-1]  # some models turn the first channels alone
        turned: Tensor = self._apply(x[..., :width], x[..., :width], cosines, sines)[0]
        if divisor is not None:
            turned = turned / divisor[:, None]  # what the embedding scales
        return torch.cat([turned, x[..., width:]], -1)
