"""``graphlossy.llm.compress``: fine-tune the same model on sampled and low-bit activations."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from torch import nn

from graphlossy._compress._api import Settings, load_switch_state, restore, switch_on, switch_state
from graphlossy.core.ledger import Ledger
from graphlossy.llm._sampled_linear import RowSampling

__all__ = ["compress", "load_state", "restore", "state"]

ESTIMATORS = ("pps", "wta", "crs", "uniform", "topk")
_SHARE = 0.3
_BITS = 4


def compress(
    model: nn.Module,
    budget: float | int | str | None = None,
    *,
    estimator: str | None = None,
    bits: int | str | None = "default",
    target_modules: str | Iterable[str] | None = None,
    recompute: bool = True,
    seed: int | None = None,
    measure_peak: bool = False,
    group_size: int = 64,
) -> Ledger:
    """Switches a language model's training to sampled and low-bit saved activations. The forward values stay the same.

    :func:`graphlossy.compress` with ``recompute=True``, which stores each number of a block once, and the samplers of
    WTA-CRS (Liu et al., NeurIPS 2023) for the linear layers. Weights, state_dict, module types and adapters are left
    alone; evaluation and ``no_grad`` run as without it; :func:`graphlossy.restore` undoes it.

    Args:
        model: any transformers model, with PEFT adapters or without, or any module.
        budget: a share in (0, 1]: every linear layer keeps that share of its input's rows (tokens) for the gradient of
            its weight. Or bytes, as a number or a text such as ``"6GiB"``: most that is saved for the backward pass;
            widths of 1 to 8 bits are chosen tensor by tensor.
        estimator: how rows are chosen, see :func:`graphlossy.core.sample_rows`: ``"pps"`` (default of a share),
            ``"wta"``, ``"crs"``, ``"uniform"``, ``"topk"`` (biased). All but ``"uniform"`` weigh rows by
            ||x_i|| ||g_i|| with the gradient norms of the sample's last visit, and need ``sample_ids`` in every call.
        bits: width of what is saved: 1, 2, 3, 4 or 8; None rounds nothing. Default: 4; None where ``budget`` or
            ``estimator`` is given.
        target_modules: names, or parts of dotted names such as ``"q_proj"``, of the layers that are sampled; None: all
            linear layers but the output embeddings.
        recompute: compute cheap results again instead of storing them, the logits of the loss among them.
        seed: start of the rounding noise and the draws; None follows torch's generator.
        measure_peak: also measure the peak memory of each step.
        group_size: numbers that are rounded with one scale and offset, as in :func:`graphlossy.compress`. Language
            models have a few channels of large values, hence the small groups: 4.5 bits a number at ``bits=4``.

    Returns:
        The ledger of the last training forward, always up to date.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: an argument is out of range, ``target_modules`` names no linear layer, or the model was compiled;
            during training, where ``sample_ids`` are missing or a budget in bytes cannot be met.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(64, 256), nn.SiLU(), nn.Linear(256, 8))
        >>> ledger = compress(model)
        >>> model(torch.randn(512, 64)).square().mean().backward()
        >>> ledger.plain_bytes > 7 * ledger.saved_bytes
        True
        >>> ledger = compress(model, 0.25, estimator="uniform", bits=8)
        >>> _ = restore(model)
    """
    share, size = _budget(budget)
    if estimator is not None and estimator not in ESTIMATORS:
        raise ValueError(f"estimator must be one of {', '.join(map(repr, ESTIMATORS))}; got {estimator!r}")
    if estimator is not None and share is None:
        if size is not None:
            raise ValueError(f"estimator={estimator!r} takes a share of the rows as its budget, got {budget!r}")
        share = _SHARE
    if target_modules is not None and share is None:
        raise ValueError("target_modules says which layers are sampled: give a share too, such as budget=0.3")
    if bits == "default":
        width = _BITS if share is None and size is None else None
    elif isinstance(bits, str):
        raise ValueError(f"bits must be 1, 2, 3, 4, 8 or None; got {bits!r}")
    else:
        width = bits
        if size is not None and width is not None:
            raise ValueError(f"give bits or a budget in bytes, not both (got bits={bits!r}, budget={budget!r})")
    if not isinstance(model, nn.Module):
        raise TypeError(f"compress takes a torch.nn.Module; got {type(model).__name__}")
    rows = None
    if share is not None:  # with a share of 1 nothing is sampled, but sample_ids are taken away as with any other
        if share < 1 and hasattr(model, "_orig_mod"):
            raise ValueError("compiled code cannot be sampled: give the model itself, not what torch.compile returned")
        rows = RowSampling(estimator or ESTIMATORS[0], share, _targets(model, target_modules))
    settings = Settings(width, size, False, seed, recompute, rows, takes_ids=True, group_size=group_size)
    return switch_on(model, settings, measure_peak)


def state(model: nn.Module) -> dict[str, Any]:
    """What a checkpoint needs to go on with the same numbers: passes, widths, norms of the samples' gradients.

    Plain values and tensors, for ``torch.save`` and ``torch.load(weights_only=True)``; {} for a model that is not
    switched on.
    """
    return switch_state(model)


def load_state(model: nn.Module, state: dict[str, Any]) -> None:
    """Gives :func:`state` back to a model that was switched on with the same arguments."""
    load_switch_state(model, state)


def _budget(budget: Any) -> tuple[float | None, int | str | None]:
    """The budget as a share of the rows, or as bytes."""
    if budget is None:
        return None, None
    if isinstance(budget, bool) or not isinstance(budget, (int, float, str)):
        raise TypeError(f"budget must be a share of the rows in (0, 1], or bytes such as '6GiB'; got {budget!r}")
    if isinstance(budget, float) or budget == 1:
        if not 0 < budget <= 1:
            raise ValueError(
                f"budget={budget!r}: a share of the rows must be above 0 and at most 1; bytes are a whole number or a "
                "text such as '6GiB'"
            )
        return float(budget), None
    return None, budget


def _targets(model: nn.Module, wanted: str | Iterable[str] | None) -> list[str]:
    """Names of the linear layers that are sampled."""
    linear = {name: module for name, module in model.named_modules() if _is_linear(module)}
    if wanted is None:
        output = getattr(model, "get_output_embeddings", lambda: None)()
        return [name for name, module in linear.items() if module is not output]
    if not isinstance(wanted, Iterable):
        raise TypeError(f"target_modules must be a name or names of linear layers, such as 'q_proj'; got {wanted!r}")
    wanted = [wanted] if isinstance(wanted, str) else list(wanted)
    if not wanted:
        raise ValueError("target_modules is empty: name layers such as 'q_proj', or give None for all linear layers")
    found: list[str] = []
    for target in wanted:
        here = [name for name in linear if name == target or f".{target}." in f".{name}."]
        if not here:
            parts = sorted({part for name in linear for part in name.split(".") if not part.isdigit()})
            near = difflib.get_close_matches(str(target), parts, 3, 0.5) or parts[:12]
            raise ValueError(f"target_modules: no linear layer is called {target!r}; there are {', '.join(near)}")
        found += here
    return list(dict.fromkeys(found))


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"  # GPT-2's
