"""Puts one table in the place of another, with everything that hangs at it."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from graphlossy.recsys._tables import SETTINGS, Table
from graphlossy.recsys.base import BagOf, CompressedEmbedding

__all__ = ["core_of", "swap_tables"]

# Hooks that know nothing of the weight go on working; their dictionaries move, so that a handle still removes its hook.
_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks",
)  # fmt: skip
_STATE_HOOKS = (
    "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip
_ORDINARY = {*vars(nn.Embedding(1, 1)), *vars(nn.EmbeddingBag(1, 1))}
_PLAIN = (bool, int, float, str, type(None))


def core_of(module: nn.Module) -> CompressedEmbedding | None:
    """The table of a module that is one, or is a bag of one; None for any other module."""
    found = module.embedding if isinstance(module, BagOf) else module
    return found if isinstance(found, CompressedEmbedding) else None


def swap_tables(pairs: Iterable[tuple[Table, nn.Module]]) -> tuple[dict[nn.Module, nn.Module], list[str]]:
    """Hangs each new module at all places of its table.

    Modules that shared a weight share one again: as one module where they pool alike, else as bags of one table.

    Returns:
        The new module of every old one, and what could not be carried over, in words.
    """
    replaced: dict[nn.Module, nn.Module] = {}
    notes: list[str] = []
    for table, built in pairs:
        views = {_pooling(table.module): built}
        used: set[nn.Module] = set()
        for old, places in table.modules:
            pooling = _pooling(old)
            new = views[pooling] if pooling in views else views.setdefault(pooling, _view(built, pooling))
            for place in places:
                place.parent._modules[place.key] = new
            notes += _carry(old, new, places[0].path, new not in used)
            used.add(new)
            replaced[old] = new
        core = core_of(built)
        if core is not None:
            core.name = table.name
    return replaced, notes


def _pooling(module: nn.Module) -> tuple[str, bool] | None:
    """(mode, include_last_offset), None for a table that is not pooled."""
    mode = getattr(module, "mode", None)
    return None if mode is None else (mode, module.include_last_offset)


def _view(built: nn.Module, pooling: tuple[str, bool] | None) -> nn.Module:
    """Another module of the parameters of ``built``."""
    core = core_of(built)
    if core is not None:
        return core if pooling is None else BagOf(core, *pooling)
    shape = (built.num_embeddings, built.embedding_dim)
    options = {name: getattr(built, name) for name in SETTINGS}
    if pooling is None:
        view: nn.Module = nn.Embedding(*shape, **options, _weight=built.weight)
    else:
        mode, last = pooling
        view = nn.EmbeddingBag(*shape, mode=mode, include_last_offset=last, **options, _weight=built.weight)
    view.weight = built.weight  # the parameter itself
    return view


def _carry(old: nn.Module, new: nn.Module, path: str, first: bool) -> list[str]:
    """Takes over the training flag, hooks and attributes; says what is lost."""
    notes = []
    new.train(old.training)
    if first:
        for name in _HOOKS:
            setattr(new, name, getattr(old, name))
        new._is_full_backward_hook = old._is_full_backward_hook
    elif any(getattr(old, name) for name in _HOOKS):
        notes.append(f"{path}: its hooks are lost, for it is one module with others now")
    if any(getattr(old, name) for name in _STATE_HOOKS):
        notes.append(f"{path}: hooks of its state_dict are lost")
    if isinstance(old, (nn.Embedding, nn.EmbeddingBag)):
        if type(old) not in (nn.Embedding, nn.EmbeddingBag):
            notes.append(f"{path}: was a {type(old).__name__}; what that class adds to torch's is gone")
        notes += _carry_attributes(old, new, path)
    return notes


def _carry_attributes(old: nn.Embedding | nn.EmbeddingBag, new: nn.Module, path: str) -> list[str]:
    notes, lost = [], []
    for name, value in vars(old).items():
        if name not in _ORDINARY and hasattr(new, name):
            notes.append(f"{path}: its attribute {name!r} is lost, the compressed table has one of that name")
        elif name not in _ORDINARY:
            setattr(new, name, value)
    for name, value in vars(old.weight).items():
        if isinstance(value, _PLAIN):
            for param in new.parameters():
                setattr(param, name, value)
        else:
            lost.append(repr(name))
    if lost:
        notes.append(f"{path}: attributes of its weight are lost: {', '.join(lost)}")
    if old.weight._backward_hooks or getattr(old.weight, "_post_accumulate_grad_hooks", None):
        notes.append(f"{path}: hooks of its weight are lost")
    return notes
