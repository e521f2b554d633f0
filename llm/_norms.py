"""Norms of each sample's gradient rows at its last visit: what weighs rows before their gradient is known."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["NormCache"]

# Least share of the mean that a row's norm counts as. A row whose gradient was zero may have one now, and a row of
# weight zero would never be drawn: the estimate would be biased.
_LEAST = 1e-3


class NormCache:
    """||g_i|| of every row of every sample, module by module, bfloat16 in main memory.

    WTA-CRS (Liu et al., NeurIPS 2023, section 3.2) draws the rows to keep in the forward pass, where the gradients are
    not known, and takes their norms from the last time that the sample was seen. 2 bytes for each token and each group
    of modules that share an input: 240 bytes a token for 30 Llama blocks.

    Example:
        >>> cache = NormCache()
        >>> cache.store("layers.0", [7], torch.tensor([[2.0, 4.0]]))
        >>> cache.lookup("layers.0", [7, 8], 2).tolist()  # a sample that was not seen yet has the mean of the others
        [[2.0, 4.0], [3.0, 3.0]]
    """

    def __init__(self) -> None:
        self._norms: dict[str, dict[int, Tensor]] = {}

    def lookup(self, name: str, ids: list[int], length: int) -> Tensor | None:
        """Norms [B, length] of the samples ``ids`` in module ``name``, float32; None if none of them was seen.

        Positions that were not there at the last visit have the mean of the sample's others.
        """
        known = self._norms.get(name, {})
        found = [known.get(number) for number in ids]
        if all(row is None for row in found):
            return None
        means = [float(row.float().mean()) for row in found if row is not None]
        out = torch.full((len(ids), length), sum(means) / len(means))
        for place, row in enumerate(found):
            if row is not None:
                there = min(length, row.numel())
                out[place] = row.float().mean()
                out[place, :there] = row[:there].float()
        mean = float(out.mean())
        return out.clamp_(min=_LEAST * mean) if mean > 0 else torch.ones_like(out)

    def store(self, name: str, ids: list[int], norms: Tensor) -> None:
        """Keeps the norms [B, T] of the samples ``ids``; of one with norms that are not finite the old ones stay."""
        kept = self._norms.setdefault(name, {})
        norms = norms.detach().to("cpu", torch.bfloat16)
        for place, number in enumerate(ids):
            if bool(norms[place].isfinite().all()):
                kept[number] = norms[place].clone()

    @property
    def nbytes(self) -> int:
        """Bytes of all norms."""
        return sum(row.numel() * row.element_size() for kept in self._norms.values() for row in kept.values())

    def state_dict(self) -> dict[str, Any]:
        """Everything, as dictionaries of tensors: for each module the samples, their lengths and all norms."""
        return {
            name: {
                "ids": torch.tensor(list(kept), dtype=torch.int64),
                "lengths": torch.tensor([row.numel() for row in kept.values()], dtype=torch.int64),
                "norms": torch.cat(list(kept.values())),
            }
            for name, kept in self._norms.items()
            if kept
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from :meth:`state_dict`."""
        self._norms = {}
        for name, held in state.items():
            norms = held["norms"].to("cpu", torch.bfloat16).split(held["lengths"].tolist())
            # Copies: one row that is left of the split would hold the memory of all.
            self._norms[name] = {n: row.clone() for n, row in zip(held["ids"].tolist(), norms, strict=True)}
