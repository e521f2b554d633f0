"""Recompute a layer's input from what an earlier layer keeps anyway, instead of keeping it twice.

After norm -> ReLU -> dropout, the input h of the next linear layer is fixed by three things that the norm, the ReLU and
the dropout keep for their own gradients: the low-bit normalised input, and which elements were let through. So

    h = s * m * (w * x_hat + b),   m exact, x_hat in low bits,

is computed again, block by block, inside the product that needs it. Given the exact mask this is affine in x_hat, so
unbiased rounding of x_hat makes h unbiased, and the linear layer keeps nothing of its own.

A recipe travels with the tensor it describes and is void once that tensor is changed in place.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from graphlossy.autograd._packed import Meta, Packed, draw_seed, pack, row_blocks

__all__ = ["Recipe", "attach", "keep", "recipe_of", "reference"]

_ATTRIBUTE = "_graphlossy_recipe"


class Recipe(NamedTuple):
    """h = (scales * masks) * (weight * kept + bias), by columns; without affine or masks where they are empty.

    Attributes:
        kept: the low-bit (or exact) source [N, D].
        affine: (weight [D], bias [D]), or ().
        masks: exact bit masks of N * D bits each, applied in order.
        scales: one factor per mask.
    """

    kept: Packed
    affine: tuple[Tensor, ...] = ()
    masks: tuple[Tensor, ...] = ()
    scales: tuple[float, ...] = ()

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (*self.kept.tensors, *self.affine, *self.masks)

    @property
    def layout(self) -> Layout:
        return Layout(self.kept.meta, len(self.affine), self.scales)

    def masked(self, mask: Tensor, scale: float) -> Recipe:
        return self._replace(masks=(*self.masks, mask), scales=(*self.scales, scale))

    def blocks(self) -> Iterator[tuple[int, int, Tensor]]:
        """(first row, end row, h[first:end]) over all rows."""
        width = self.kept.meta.shape[-1]
        for start, end, block in row_blocks(self.kept):
            for number, column in enumerate(self.affine):
                block = block * column if number == 0 else block + column
            for mask, scale in zip(self.masks, self.scales, strict=True):
                part = mask[start * width // 8 : -(-end * width // 8)]
                block = torch.ops.graphlossy.mask_apply(block.contiguous(), part, scale)
            yield start, end, block

    def compute(self) -> Tensor:
        """h as a whole, [N, D]."""
        blocks = [block for _, _, block in self.blocks()]
        shape = self.kept.meta.shape
        return torch.cat(blocks) if blocks else self.kept.tensors[0].new_zeros(tuple(shape), dtype=self.kept.meta.dtype)


class Layout(NamedTuple):
    """The constants of a recipe, kept beside its tensors."""

    meta: Meta
    affine: int
    scales: tuple[float, ...]

    def rebuild(self, tensors: tuple[Tensor, ...] | list[Tensor]) -> Recipe:
        tensors = tuple(tensors)
        kept = 1 if self.meta.bits == 0 else 3
        end = kept + self.affine
        return Recipe(Packed(tensors[:kept], self.meta), tensors[kept:end], tensors[end:], self.scales)


def attach(x: Tensor, recipe: Recipe) -> Tensor:
    """Let later layers know how to compute ``x`` again. Returns ``x``."""
    if not torch.compiler.is_compiling():
        setattr(x, _ATTRIBUTE, (_versions(x, recipe), recipe))
    return x


def _versions(x: Tensor, recipe: Recipe) -> tuple[int, ...]:
    return (x._version, *(t._version for t in recipe.tensors))


def recipe_of(x: Tensor) -> Recipe | None:
    """The recipe of ``x`` if it has one and neither ``x`` nor what the recipe is made of has changed since."""
    if torch.compiler.is_compiling():
        return None
    versions, recipe = getattr(x, _ATTRIBUTE, (None, None))
    return recipe if recipe is not None and versions == _versions(x, recipe) else None


def reference(x: Tensor, group_size: int = 256) -> Recipe:
    """The recipe of a tensor [..., D] that lives anyway: itself, as rows."""
    # Itself and no view of it where that is possible: saved-tensor hooks then know it for an input.
    plain = x.dim() == 2 and not x.requires_grad and not torch.compiler.is_compiling()
    rows = x if plain else x.detach().reshape(-1, x.shape[-1])
    return Recipe(Packed((rows,), Meta(0, group_size, False, rows.shape, x.dtype)))


def keep(x: Tensor, bits: int, group_size: int = 256) -> Recipe:
    """How to have ``x`` [..., D], as rows [N, D], again in the backward pass, at the least cost.

    A recipe that came with it; a reference if it needs no gradient or is a leaf, since it then lives anyway; otherwise
    a low-bit copy, which is left on ``x`` so that a second layer with the same input shares it. One seed is drawn in
    every case.
    """
    seed = draw_seed()
    recipe = recipe_of(x)
    if recipe is not None:
        return recipe
    if not x.requires_grad or (not torch.compiler.is_compiling() and x.is_leaf):
        return reference(x, group_size)
    recipe = Recipe(pack(x.detach().reshape(-1, x.shape[-1]), bits, group_size, seed=seed))
    attach(x, recipe)
    return recipe
