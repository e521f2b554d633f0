"""The rotation of head dimensions: orthogonal, its own inverse, and no channel stays alone."""

from __future__ import annotations

import importlib

import pytest
import torch

pytest.importorskip("transformers")
rotate = importlib.import_module("graphlossy.llm.kv._rotation").rotate


@pytest.mark.parametrize("width", [1, 2, 5, 20, 64, 72, 80, 96, 128, 192, 256])
def test_it_is_its_own_inverse_and_spreads_every_channel(width: int) -> None:
    x = torch.randn(3, 2, width, generator=torch.Generator().manual_seed(0))
    once = rotate(x)
    torch.testing.assert_close(rotate(once), x)
    torch.testing.assert_close(once.norm(dim=-1), x.norm(dim=-1))
    matrix = rotate(torch.eye(width))
    torch.testing.assert_close(matrix, matrix.T)
    assert float(matrix.abs().max()) <= 2**0.5 / width**0.5 + 1e-6


def test_powers_of_two_are_hadamards() -> None:
    matrix = rotate(torch.eye(64)) * 8
    assert torch.equal(matrix.abs(), torch.ones(64, 64))
    assert rotate(torch.ones(2, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16
