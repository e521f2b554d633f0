"""Corner cases of the sampled linear layers: views of one input, rows that are not finite, what lives how long."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graphlossy import llm
from graphlossy.llm import NormCache, _sampled_linear, with_sample_ids


class Two(nn.Module):
    """Two layers, of which the second is given a view of the first one's input."""

    def __init__(self, view: Callable[[Tensor], Tensor], width: int = 48) -> None:
        super().__init__()
        self.a, self.b, self.view = nn.Linear(48, 40), nn.Linear(width, 40), view

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(x)
        return (self.a(h) ** 2).sum() + (self.b(self.view(h)) ** 2).sum()


def rows(samples: int = 4, length: int = 20) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    scale = torch.rand(samples, length, 1, generator=generator)
    return 3 * scale * torch.randn(samples, length, 48, generator=generator)


def gradients(model: nn.Module, x: Tensor, **given: Any) -> dict[str, Tensor]:
    model.zero_grad()
    model(x, **given).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("estimator", ["pps", "uniform"])
@pytest.mark.parametrize(
    ("view", "width"),
    [
        (lambda h: h.transpose(0, 1), 48),
        (lambda h: h[..., :32], 32),
        (lambda h: h[:, ::2], 48),
        (lambda h: h.view(4, 10, 96), 96),
        (lambda h: h.view(-1, 48), 48),
    ],
    ids=["transposed", "slice", "strided", "wider", "flat"],
)
def test_views_of_one_input_have_samples_of_their_own(
    view: Callable[[Tensor], Tensor], width: int, estimator: str
) -> None:
    torch.manual_seed(0)
    model, x = Two(view, width).train(), rows()
    wanted = gradients(model, x)
    llm.compress(model, 0.4, estimator=estimator, seed=1)
    found = [gradients(model, x, sample_ids=torch.arange(4)) for _ in range(64)]
    for name in ("a.weight", "b.weight"):
        errors = torch.stack([gradient[name] - wanted[name] for gradient in found])
        one = errors.flatten(1).norm(dim=1).square().mean().sqrt()
        assert one > 0.05 * wanted[name].norm()
        assert float(errors.mean(0).norm()) < 2 * float(one) / 8  # of 64 independent ones: an eighth


def test_a_flat_view_of_the_same_rows_shares_the_sample() -> None:
    model = Two(lambda h: h.view(-1, 48)).train()
    ledger = llm.compress(model, 0.4, estimator="uniform", recompute=False)
    torch.manual_seed(0)
    model(rows(8, 64))
    saved = [r.saved_bytes for r in ledger.records if r.op == "linear" and r.shape == (round(0.4 * 512), 48)]
    assert len(saved) == 2 and saved[1] == 0 < saved[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_models_of_other_types(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, x = Two(lambda h: h).to(dtype).train(), rows().to(dtype)
    wanted = gradients(model, x)
    llm.compress(model, 0.9, seed=1)
    for name, gradient in gradients(model, x, sample_ids=torch.arange(4)).items():
        assert gradient.dtype == dtype and (gradient - wanted[name]).norm() < 0.4 * wanted[name].norm()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_is_seen_even_where_the_loss_leaves_it_out(value: float) -> None:
    model, x = nn.Sequential(nn.Linear(48, 40)).train(), rows()
    x[0, 0] = value

    def finite(**given: Any) -> bool:
        model.zero_grad()
        model(x, **given)[1:].square().sum().backward()
        return bool(model[0].weight.grad.isfinite().all())

    assert not finite()
    llm.compress(model, 0.2, estimator="pps")
    assert not finite(sample_ids=torch.arange(4)) and not finite(sample_ids=torch.arange(4))


def test_rows_that_were_rounded_are_not_kept_beside() -> None:
    """Float rows of the sample, and its indices, are gone when the pass is over; those of dropped inputs before."""
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(64, 64) for _ in range(6)]).train()
    made: list[weakref.ref[Tensor]] = []
    plain = _sampled_linear.sample_rows

    def noted(*given: Any) -> Any:
        sample = plain(*given)
        made.extend((weakref.ref(sample.index), weakref.ref(sample.probabilities)))
        return sample

    ledger = llm.compress(model, 0.5, estimator="pps", bits=4, recompute=False)
    x, kept = torch.randn(8, 64, 64), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_sampled_linear, "sample_rows", noted)
        init = _sampled_linear._Group.__init__

        def group(self: Any, *given: Any) -> None:
            init(self, *given)
            if self.rows is not None:
                kept.append(weakref.ref(self.rows))

        patch.setattr(_sampled_linear._Group, "__init__", group)
        loss = model(x, sample_ids=torch.arange(8)).square().mean()
    gc.collect()
    assert len(made) == 12 and len(kept) >= 5
    assert any(r.how == "quantized" and r.shape == (256, 64) for r in ledger.records)
    assert not any(ref() is not None for ref in (*made, *kept))
    loss.backward()


def test_a_share_of_one_takes_the_numbers_away_and_changes_nothing() -> None:
    torch.manual_seed(0)
    model, x = Two(lambda h: h).train(), rows()
    wanted = gradients(model, x)
    llm.compress(model, 1.0, estimator="wta")
    for given in ({}, {"sample_ids": torch.arange(4)}):
        found = gradients(model, x, **given)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("ids", [torch.tensor([True, False]), torch.zeros(2, dtype=torch.complex64)])
def test_numbers_of_samples_are_integers(ids: Tensor) -> None:
    model = nn.Sequential(nn.Linear(48, 40)).train()
    llm.compress(model, 0.4)
    with pytest.raises(TypeError, match=f"integer tensor .* got {ids.dtype}"):
        model(rows(2), sample_ids=ids)
    for dtype in (torch.int32, torch.uint8):
        model(rows(2), sample_ids=torch.arange(2, dtype=dtype))


def test_autocast_does_not_cache_a_weight_without_its_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, linear = [], torch.nn.functional.linear

    def noted(*given: Any) -> Tensor:
        seen.append(torch.is_autocast_cache_enabled())
        return linear(*given)

    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(48, 40)).train(), rows()
    llm.compress(model, 0.4, estimator="uniform")
    monkeypatch.setattr(_sampled_linear, "F", SimpleNamespace(linear=noted))
    with torch.autocast("cpu", torch.bfloat16):
        sampled = model(x)
        few = model(x[0, :5])  # too few rows to be sampled
        assert torch.is_autocast_cache_enabled()
    assert seen == [False] and sampled.dtype == torch.bfloat16
    few.sum().backward()
    assert model[0].weight.grad.abs().sum() > 0


def test_norms_that_are_loaded_are_kept_as_they_were() -> None:
    cache, twin = NormCache(), NormCache()
    cache.store("a", [0, 1], torch.ones(2, 1000))
    state = cache.state_dict()
    state["a"]["norms"] = state["a"]["norms"].float()  # as a checkpoint that was converted
    twin.load_state_dict(state)
    assert twin.nbytes == cache.nbytes
    row = twin._norms["a"][0]
    assert row.dtype == torch.bfloat16 and row.untyped_storage().nbytes() == 2000


def test_a_feature_of_nothing_is_named() -> None:
    with pytest.raises(KeyError, match="it has nothing; wrap the dataset in SampleIds"):
        with_sample_ids(dict)([{}])


class InPlace(nn.Module):
    """What follows the layer changes its result in place."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(48, 64), nn.ReLU(inplace=True), nn.Linear(64, 40)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)
        h += 0.5
        return self.down(self.act(h)).square().sum()


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("shape", [(4, 20, 48), (80, 48)])
def test_results_may_be_changed_in_place(shape: tuple[int, ...], recompute: bool) -> None:
    torch.manual_seed(0)
    model, x = InPlace().train(), rows().view(shape)
    loss, wanted = float(model(x).detach()), gradients(model, x)
    llm.compress(model, 0.5, estimator="uniform", recompute=recompute, seed=1)
    found = [gradients(model, x) for _ in range(64)]
    assert float(model(x).detach()) == loss
    assert all(torch.allclose(g["up.bias"], wanted["up.bias"], rtol=1e-4, atol=1e-3) for g in found)
    errors = torch.stack([g["up.weight"] - wanted["up.weight"] for g in found])
    one = errors.flatten(1).norm(dim=1).square().mean().sqrt()
    assert 0 < float(errors.mean(0).norm()) < 2 * float(one) / 8


def test_target_modules_that_name_nothing() -> None:
    model = nn.Sequential(nn.Linear(48, 40))
    with pytest.raises(ValueError, match="target_modules is empty: name layers"):
        llm.compress(model, 0.4, target_modules=[])
    with pytest.raises(TypeError, match="a name or names of linear layers.* got 3"):
        llm.compress(model, 0.4, target_modules=3)  # type: ignore[arg-type]


class WithModule(nn.Module):
    """A model that has a part called as the model inside torch's wrappers is."""

    def __init__(self) -> None:
        super().__init__()
        self.module, self.head = nn.Linear(48, 40), nn.Linear(40, 2)


def test_the_callback_takes_the_model_out_of_wrappers_alone() -> None:
    pytest.importorskip("transformers")
    callback, state = llm.LossyCallback(bits=4), SimpleNamespace(global_step=0)
    own, inner = WithModule(), nn.Linear(48, 40)
    for model, switched in ((own, own), (nn.DataParallel(inner), inner)):
        callback.on_train_begin(SimpleNamespace(output_dir="nowhere"), state, None, model=model)
        assert [m for m in model.modules() if m._forward_pre_hooks] == [switched]
        callback.on_train_end(None, state, None, model=model)
        assert not any(m._forward_pre_hooks for m in model.modules())
