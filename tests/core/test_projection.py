"""Random projection: unbiasedness, the closed-form error, blocks, bytes and errors."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graphlossy.core import ProjectedTensor, random_projection


def largest_z(estimates, truth):
    spread = estimates.std(0) / len(estimates) ** 0.5
    return float(((estimates.mean(0) - truth) / spread).abs().max())


def rebuilt(x, rank, seeds, block_rows=None):
    return torch.stack([random_projection(x, rank, s, block_rows).reconstruct() for s in range(seeds)])


@pytest.mark.parametrize("block_rows", [None, 1, 2])
@pytest.mark.parametrize("rank", [1, 3, 12])
def test_unbiased(rank, block_rows):
    x = torch.randn(5, 12, dtype=torch.float64)
    assert largest_z(rebuilt(x, rank, 1500, block_rows), x) < 4.5


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_a_planted_bias_is_found(factor):
    x = torch.randn(5, 12, dtype=torch.float64)
    estimates = rebuilt(x, 6, 1500)
    assert largest_z(estimates, x) < 4.5
    assert largest_z(estimates * factor, x) > 6


@pytest.mark.parametrize(("width", "rank"), [(16, 2), (16, 8), (33, 4)])
def test_error_is_the_closed_form(width, rank):
    x = torch.randn(6, width, dtype=torch.float64)
    squares = (rebuilt(x, rank, 1500, block_rows=1) - x).square().sum(2) / x.square().sum(1)
    expected = (width - 1) / rank
    # rows of one seed have projections of their own: all of them are independent
    assert abs(float(squares.mean()) - expected) < 4.5 * float(squares.std()) / squares.numel() ** 0.5


def test_reconstruction_is_y_p_transposed_with_one_p(device):
    """The identity's rows give P P^T itself."""
    x = torch.randn(50, 16, device=device)
    ppt = random_projection(torch.eye(16, device=device), 4, seed=3).reconstruct()
    torch.testing.assert_close(random_projection(x, 4, seed=3).reconstruct(), x @ ppt)
    torch.testing.assert_close(ppt, ppt.T)
    # entries of P are 1 / sqrt(4) in size: the diagonal of P P^T is exactly 1, and P has rank 4
    assert torch.equal(ppt.diagonal().cpu(), torch.ones(16))
    assert int(torch.linalg.matrix_rank(ppt)) == 4


def test_blocks_let_the_noise_average_out():
    x, g = torch.randn(2000, 32), torch.randn(2000, 4)
    x[:, 0] += g[:, 0]  # so that there is a gradient
    truth = x.T @ g

    def error(block_rows):
        parts = [random_projection(x, 4, s, block_rows).reconstruct().T @ g - truth for s in range(5)]
        return float(torch.stack(parts).square().sum() / 5 / truth.square().sum())

    assert 4 < error(None) < 12  # (32 - 1) / 4: as for a single row
    assert error(10) < error(200) < 0.5 * error(None)


def test_blocks_have_projections_of_their_own_in_any_chunks(monkeypatch):
    x = torch.randn(23, 8)
    whole = random_projection(x, 3, seed=5, block_rows=4)
    from graphlossy.core import projection

    monkeypatch.setattr(projection, "_CHUNK", 40)
    parts = random_projection(x, 3, seed=5, block_rows=4)
    torch.testing.assert_close(parts.projected, whole.projected)
    torch.testing.assert_close(parts.reconstruct(), whole.reconstruct())
    torch.testing.assert_close(random_projection(x, 3, 5).projected, random_projection(x, 3, 5, 1000).projected)
    same = random_projection(x[:1].expand(23, 8), 3, seed=5, block_rows=4).projected
    assert torch.equal(same[0], same[3]) and not torch.equal(same[0], same[4])


@given(
    shape=st.lists(st.integers(0, 4), min_size=0, max_size=2),
    width=st.integers(1, 70),
    rank=st.integers(1, 70),
    block_rows=st.none() | st.integers(1, 6),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
def test_shapes_and_bytes(shape, width, rank, block_rows, dtype):
    rank = min(rank, width)
    x = torch.randn(*shape, width).to(dtype)
    y = random_projection(x, rank, seed=1, block_rows=block_rows)
    assert y.projected.shape == (*shape, rank) and y.projected.dtype == y.dtype == dtype and y.rank == rank
    assert y.nbytes == y.projected.numel() * y.projected.element_size() + 8
    out = y.reconstruct()
    assert out.shape == x.shape and out.dtype == dtype
    again = random_projection(x, rank, seed=1, block_rows=block_rows)
    assert torch.equal(again.projected, y.projected) and torch.equal(again.reconstruct(), out)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_multiplied_in_float32(dtype):
    x = torch.randn(100, 64).to(dtype)
    exact = random_projection(x.double(), 6, seed=2).projected  # 1 / sqrt(6) is no number of either dtype
    found = random_projection(x, 6, seed=2).projected.double()
    assert float((found - exact).abs().max()) <= torch.finfo(dtype).eps * float(exact.abs().max())
    ratio = float((found * exact).sum() / exact.square().sum())
    assert abs(ratio - 1) < torch.finfo(dtype).eps / 8  # bfloat16's rounding of 1 / sqrt(6) alone would be off by more


def test_quantised_rows_are_unbiased_and_small():
    x = torch.randn(64, 32)
    y = random_projection(x, 8, seed=0).quantize(2, seed=0)
    assert y.nbytes == 64 * 8 // 4 + 2 * 4 + 8 and y.rank == 8
    with pytest.raises(TypeError, match="quantised already, to 2 bits"):
        y.quantize(2)
    parts = torch.stack([random_projection(x[:4], 8, s).quantize(4, seed=s).reconstruct() for s in range(1000)])
    assert largest_z(parts, x[:4]) < 4.7


def test_pickle_copy_move_and_repr(tmp_path):
    y = random_projection(torch.randn(3, 5, 8), 4, seed=7, block_rows=2)
    torch.save(y, tmp_path / "y.pt")
    for other in (pickle.loads(pickle.dumps(y)), copy.deepcopy(y), torch.load(tmp_path / "y.pt", weights_only=True)):
        assert isinstance(other, ProjectedTensor) and torch.equal(other.reconstruct(), y.reconstruct())
    assert y.to("cpu") is y and y.to("meta").device.type == "meta" and y.device.type == "cpu"
    assert repr(y) == "ProjectedTensor(shape=(3, 5, 8), dtype=float32, rank=4, block_rows=2, 248 bytes, cpu)"


def test_signs_are_equal_on_every_device(device):
    x = torch.eye(20)
    there = random_projection(x.to(device), 7, seed=11, block_rows=5).projected
    assert torch.equal(there.cpu(), random_projection(x, 7, seed=11, block_rows=5).projected)


def test_the_global_generator_governs_the_seed():
    x = torch.randn(4, 8)
    torch.manual_seed(1)
    first, second = random_projection(x, 2), random_projection(x, 2)
    torch.manual_seed(1)
    assert random_projection(x, 2).seed == first.seed != second.seed
    assert not random_projection(x.requires_grad_(), 2).projected.requires_grad


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((torch.ones(2, 4), 5), ValueError, "rank must be at most D = 4.*got 5"),
        ((torch.ones(2, 4), 0), ValueError, "rank must be at least 1, got 0"),
        ((torch.ones(2, 4), 2.0), TypeError, "rank must be an int, got float"),
        ((torch.ones(2, 4), 2, "7"), TypeError, "seed must be an int or None, got str"),
        ((torch.ones(2, 4), 2, 0, 0), ValueError, "block_rows must be at least 1, got 0"),
        ((torch.ones(()), 1), ValueError, "at least one dimension"),
        ((torch.ones(2, 4, dtype=torch.int64), 2), TypeError, "x"),
        ((torch.ones(2, 4).to_sparse(), 2), TypeError, "got torch.sparse_coo"),
        (([1.0], 1), TypeError, "got list"),
    ],
)
def test_errors(arguments, error, text):
    with pytest.raises(error, match=text):
        random_projection(*arguments)
