"""The gradient hook: unbiased, the same everywhere, honest about bytes, and no place for a NaN to hide."""

from __future__ import annotations

import importlib.util
import math
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from graphlossy.core import quantize
from graphlossy.train.gradients import QuantizedState, compress_gradients

SPEC = importlib.util.spec_from_file_location("torchrun_jobs", Path(__file__).with_name("torchrun_jobs.py"))
jobs = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(jobs)

pytestmark = [
    pytest.mark.skipif(not dist.is_available() or not hasattr(os, "fork"), reason="needs torch.distributed and fork"),
    pytest.mark.usefixtures("one_thread"),
]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("averages")
    done = jobs.launch("averages", folder)
    assert done.returncode == 0, done.stdout
    return jobs.results(folder)


def exact(step):
    """The mean gradient of both ranks, without any hook, and that of each of them."""
    parts = []
    for rank in range(2):
        model, network, _ = jobs.toy_network(None)
        jobs.backward(network, rank, step)
        parts.append(jobs.gradients(model))
    return [(a + b) / 2 for a, b in zip(*parts, strict=True)], parts


# -- two processes ----------------------------------------------------------------------------------------------------


def test_every_rank_holds_the_same_bits(ranks) -> None:
    for name in ("4 bits", "feedback"):
        for first, second in zip(*(rank[name]["steps"] for rank in ranks), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_same_seed_gives_the_same_gradients_and_steps_differ(ranks) -> None:
    for rank in ranks:
        for once, again in zip(rank["4 bits"]["steps"], rank["again"], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    state = QuantizedState(bits=1)
    x = torch.randn(2048)
    codes = [state.encode(x, number, rank).packed for number, rank in ((0, 0), (1, 0), (0, 1))]
    state.steps = 1
    codes.append(state.encode(x, 0, 0).packed)
    assert all(not torch.equal(a, b) for i, a in enumerate(codes) for b in codes[:i])


def test_the_mean_is_within_the_rounding_error(ranks) -> None:
    """64 x 40 weights are rounded, a step of a 4-bit group apart at most; 64 biases and 5 x 64 weights are exact."""
    for step, found in enumerate(ranks[0]["4 bits"]["steps"]):
        mean, parts = exact(step)
        rounded = found[0] - mean[0]
        largest = sum(quantize(part[0], 4, dim=None).scale.max().item() for part in parts) / 2
        assert 0 < rounded.abs().max() <= largest
        assert all(torch.equal(a, b) for a, b in zip(found[1:], mean[1:], strict=True))


def test_bytes_are_those_of_the_payload(ranks) -> None:
    """2560 codes of 4 bits, 10 groups of 4 bytes, and 64 + 320 floats; three steps, to one other process."""
    for rank in ranks:
        state = rank["4 bits"]["state"]
        assert state["steps"] == 3
        assert state["bytes_sent"] == 3 * (2560 // 2 + 10 * 4 + (64 + 320) * 4)
        assert state["bytes_plain"] == 3 * 4 * (2560 + 64 + 320)
        assert rank["4 bits"]["ratio"] == state["bytes_plain"] / state["bytes_sent"] > 4


def test_nan_and_infinity_reach_every_rank_and_are_gone_in_the_next_step(ranks) -> None:
    for rank in ranks:
        for name in ("nan", "inf"):
            spoiled, after = rank[name]
            assert not any(gradient.isfinite().all() for gradient in spoiled)
            assert all(gradient.isfinite().all() for gradient in after)


def test_beside_powersgd(ranks) -> None:
    """PowerSGD of rank 2 on the same model: it sends less, and its gradient is further away."""
    mean, _ = exact(2)
    error = {
        name: (found[0] - mean[0]).norm() / mean[0].norm()
        for name, found in (("ours", ranks[0]["4 bits"]["steps"][2]), ("powersgd", ranks[0]["powersgd"]))
    }
    assert 0 < error["ours"] < error["powersgd"]


# -- one process ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_the_mean_over_seeds_is_the_gradient(bits) -> None:
    """Also shows that the test would see a bias: rounding to the nearest code is refused."""
    x = torch.randn(1024, generator=torch.Generator().manual_seed(3)) ** 3
    trials = 600
    sent = torch.stack([QuantizedState(bits, seed=seed).encode(x, 0, 0).dequantize() for seed in range(trials)])
    biased = quantize(x, bits, rounding="nearest", dim=None).dequantize()
    step = quantize(x, bits, dim=None).scale.float().repeat_interleave(256, 1).view(-1)
    bound = 5 * step / 2 / math.sqrt(trials) + step / 2**15  # five standard deviations, of at most half a step
    assert ((sent.mean(0) - x).abs() <= bound).all()
    assert not ((biased - x).abs() <= bound).all()


@given(
    bits=st.sampled_from([1, 2, 3, 4, 8]),
    numel=st.integers(1, 700),
    power=st.integers(1, 4),
    scale=st.sampled_from([1e-20, 1e-3, 1.0, 1e10]),
    shift=st.sampled_from([0.0, 1.0, -50.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_with_feedback_the_error_is_smaller_than_the_gradient(bits, numel, power, scale, shift, seed) -> None:
    """What makes error feedback stable at every width; without the least-squares factor one bit is not."""
    x = (torch.randn(numel, generator=torch.Generator().manual_seed(seed)) ** power + shift) * scale
    state = QuantizedState(bits, error_feedback=True, exact_below=1)
    sent = state.encode(x, 0, 0).dequantize()
    assert (x - sent).double().norm() <= x.double().norm() * (1 + 2**-7)  # scale and offset are bfloat16
    torch.testing.assert_close(state.state_dict()["residuals"][0], x - sent)


def test_one_bit_without_the_factor_would_grow_without_bound() -> None:
    x = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    plain = quantize(x, 1, rounding="nearest", dim=None).dequantize()
    assert (x - plain).norm() > x.norm()


def test_feedback_sends_everything_in_the_end() -> None:
    """The mean of what is sent for one and the same gradient comes to it as 1 / steps; a residual does not grow."""
    x = torch.randn(2048, generator=torch.Generator().manual_seed(1))
    state = QuantizedState(1, error_feedback=True)
    sent = torch.stack([state.encode(x, 0, 0).dequantize() for _ in range(80)])
    errors = [(sent[:n].mean(0) - x).norm() / x.norm() for n in (1, 20, 80)]
    assert errors[2] < 0.6 * errors[1] < 0.4 * errors[0]


def test_state_goes_on_and_merges() -> None:
    x = torch.randn(2, 2048, generator=torch.Generator().manual_seed(1))
    states = [QuantizedState(2, error_feedback=True) for _ in range(2)]
    for rank, state in enumerate(states):
        state.encode(x[rank], 7, rank)
        state.steps = 5
    again = QuantizedState(2, error_feedback=True)
    again.load_state_dict(states[1].state_dict())
    assert again.steps == 5
    assert torch.equal(again.encode(x[0], 7, 1).packed, states[1].encode(x[0], 7, 1).packed)
    parts = [state.state_dict() for state in states]
    merged = QuantizedState.merge(parts)
    expected = (parts[0]["residuals"][7] + parts[1]["residuals"][7]) / 2
    assert merged["steps"] == 5 and torch.equal(merged["residuals"][7], expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types(dtype) -> None:
    x = torch.randn(1500, generator=torch.Generator().manual_seed(1)).to(dtype)
    for feedback in (False, True):
        sent = QuantizedState(8, error_feedback=feedback).encode(x, 0, 0).dequantize(torch.float32)
        assert (sent - x.float()).norm() < 0.02 * x.float().norm()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"bits": 5}, ValueError, "bits must be 1, 2, 3, 4 or 8, got 5"),
        ({"bits": True}, ValueError, "bits must be 1, 2, 3, 4 or 8, got True"),
        ({"group_size": 100}, ValueError, "group_size"),
        ({"exact_below": 0}, ValueError, "exact_below must be a number of elements from 1, got 0"),
        ({"seed": 0.5}, TypeError, "seed must be an int"),
    ],
)
def test_wrong_settings(settings, error, message) -> None:
    with pytest.raises(error, match=message):
        QuantizedState(**settings)


def test_a_model_that_is_not_wrapped() -> None:
    with pytest.raises(TypeError, match="model must be a DistributedDataParallel, got Linear; wrap it first"):
        compress_gradients(torch.nn.Linear(2, 2), bits=4)
