"""`PrunedEmbedding`: entries at block boundaries, their storage, other shapes from a state_dict, the file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from graphlossy.recsys.tables import PrunedEmbedding


def example(
    tokens: int, width: int, share: float, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(tokens, width, dtype=dtype), torch.rand(tokens, width) < share


@given(
    tokens=st.sampled_from([1, 2, 63, 64, 65, 127, 128, 129, 300]),
    width=st.sampled_from([1, 3, 16, 255, 256, 257, 300]),
    share=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
)
def test_from_mask(tokens: int, width: int, share: float, dtype: torch.dtype) -> None:
    dense, mask = example(tokens, width, share, dtype)
    if tokens > 2:
        mask[tokens // 2], mask[-1] = False, True  # a row without entries and a full one
    table = PrunedEmbedding.from_mask(dense, mask)
    expected = torch.where(mask, dense, 0)
    assert torch.equal(table.weight.detach(), expected) and torch.equal(table.mask, mask)
    ids = torch.randint(0, tokens, (50,))
    assert torch.equal(table(ids), expected[ids])
    assert torch.equal(table(torch.arange(tokens)), expected)
    assert table.kept == int(mask.sum())
    assert table.nbytes == PrunedEmbedding.bytes_of(tokens, width, dtype=dtype, kept=table.kept)


def test_bytes_per_entry_and_row() -> None:
    table = PrunedEmbedding.from_mask(*example(6400, 32, 0.1))
    assert table.nbytes == 5 * table.kept + 6400 + 4 * 100
    assert PrunedEmbedding.bytes_of(6400, 256, kept=10) == 5 * 10 + 2 * 6400 + 4 * 100
    assert PrunedEmbedding.bytes_of(6400, 257, kept=10) == 6 * 10 + 2 * 6400 + 4 * 100
    assert PrunedEmbedding.bytes_of(2**30, 32, kept=2**31) == 5 * 2**31 + 2**30 + 8 * 2**24


def test_the_file_is_as_large_as_nbytes(tmp_path: Path) -> None:
    table = PrunedEmbedding.from_mask(*example(20_000, 32, 0.1))
    torch.save(table.state_dict(), tmp_path / "table.pt")
    save_file(table.state_dict(), tmp_path / "table.safetensors")
    for file in tmp_path.iterdir():
        assert file.stat().st_size == pytest.approx(table.nbytes, rel=0.01)
    fresh = PrunedEmbedding(20_000, 32)
    fresh.load_state_dict(load_file(tmp_path / "table.safetensors"))
    assert torch.equal(fresh.weight, table.weight)


@pytest.mark.parametrize("sparse", [False, True])
def test_gradient_is_of_kept_entries(sparse: bool) -> None:
    dense, mask = example(150, 7, 0.3, torch.float64)
    table = PrunedEmbedding.from_mask(dense, mask, sparse=sparse)
    ids, upstream = torch.randint(0, 150, (80,)), torch.randn(80, 7, dtype=torch.float64)
    table(ids).backward(upstream)
    reference = dense.clone().requires_grad_()
    (reference * mask)[ids].backward(upstream)
    assert table.values.grad.is_sparse == sparse
    torch.testing.assert_close(table.values.grad.to_dense(), reference.grad[mask])


def test_padding_keeps_its_row() -> None:
    """Tokens share nothing, so that as in torch the padding row is what it was given, and gets no gradient."""
    dense, mask = torch.randn(5, 4), torch.ones(5, 4, dtype=torch.bool)
    table = PrunedEmbedding.from_mask(dense, mask, padding_idx=2)
    assert torch.equal(table(torch.tensor([2]))[0], dense[2])
    table(torch.tensor([2, 1])).sum().backward()
    assert torch.equal(table.values.grad.view(5, 4), torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0]).unsqueeze(1).expand(5, 4))
    assert not PrunedEmbedding(5, 4, kept=20, padding_idx=2).weight[2].any()


def test_entries_without_a_mask_are_spread_evenly() -> None:
    table = PrunedEmbedding(1000, 12, kept=3100)
    assert table.mask.sum() == 3100
    assert set(table.mask.sum(1).tolist()) == {3, 4} and table.mask.sum(0).max() - table.mask.sum(0).min() <= 1


def test_state_of_another_number_of_entries_loads() -> None:
    table = PrunedEmbedding.from_mask(*example(130, 9, 0.4))
    fresh = PrunedEmbedding(130, 9, kept=17).requires_grad_(False)
    fresh.load_state_dict(table.state_dict())
    assert torch.equal(fresh.weight, table.weight) and not fresh.values.requires_grad
    model = torch.nn.ModuleDict({"user": PrunedEmbedding(130, 9)})
    model.load_state_dict({f"user.{name}": value for name, value in table.state_dict().items()})
    assert torch.equal(model["user"].weight, table.weight)


def test_states_that_do_not_fit_are_refused() -> None:
    state = PrunedEmbedding.from_mask(*example(130, 9, 0.4)).state_dict()
    fresh = PrunedEmbedding(130, 9)
    for other in (PrunedEmbedding(129, 9), PrunedEmbedding(130, 8), PrunedEmbedding(130, 300)):
        with pytest.raises(RuntimeError, match="size mismatch|width"):
            other.load_state_dict(state)
    counts = state["row_counts"].clone()
    counts[3] += 1
    for wrong, message in (
        ({"row_counts": counts}, "add up"),
        ({"values": state["values"][:-1]}, "add up"),
        ({"directory": state["directory"] + 1}, "directory"),
        ({"columns": state["columns"] + 5}, "width 9"),
    ):
        with pytest.raises(RuntimeError, match=message):
            fresh.load_state_dict(state | wrong)
        assert fresh.kept == 0  # nothing of a wrong state is taken over
    with pytest.raises(RuntimeError, match="Missing key"):
        fresh.load_state_dict({"values": state["values"]})


def test_scores_are_made_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    table, queries = PrunedEmbedding.from_mask(*example(300, 9, 0.4)), torch.randn(4, 9)
    monkeypatch.setattr("graphlossy.recsys.tables.pruned._ELEMENTS", 50)
    torch.testing.assert_close(table.scores(queries), queries @ table.weight.T)


def test_bad_masks() -> None:
    dense = torch.randn(4, 3)
    with pytest.raises(ValueError, match="one shape"):
        PrunedEmbedding.from_mask(dense, torch.ones(3, 4, dtype=torch.bool))
    with pytest.raises(TypeError, match="mask must be bool"):
        PrunedEmbedding.from_mask(dense, torch.ones(4, 3))
    with pytest.raises(ValueError, match="kept must be from 0 to 12"):
        PrunedEmbedding(4, 3, kept=13)
