"""Which embedding tables of a model can be replaced, and where they hang."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from graphlossy.recsys.base import BagOf, CompressedEmbedding

__all__ = ["SETTINGS", "LeftAlone", "Place", "Table", "check_any", "find_tables", "places_of"]

SETTINGS = ("padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")
_WRAPPERS = ("DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule")


@dataclass(frozen=True)
class Place:
    """Where a module hangs: ``parent._modules[key]``, reached by ``path``."""

    parent: nn.Module
    key: str
    path: str


@dataclass
class Table:
    """Modules that share one weight, and all places they hang at.

    Attributes:
        module: the one whose settings the compressed table gets.
        modules: all of them, ``module`` first, with their places.
    """

    module: Any
    modules: list[tuple[Any, list[Place]]] = field(default_factory=list)

    @property
    def paths(self) -> list[str]:
        """Of every place, the one that names the table first."""
        return [place.path for _, places in self.modules for place in places]

    @property
    def name(self) -> str:
        """The first path."""
        return self.paths[0]

    @property
    def aliases(self) -> tuple[str, ...]:
        """The other paths."""
        return tuple(self.paths[1:])

    @property
    def nbytes(self) -> int:
        """Bytes of the weight."""
        return self.module.weight.numel() * self.module.weight.element_size()


@dataclass(frozen=True)
class LeftAlone:
    """A table that stays as it is.

    Attributes:
        name: its path.
        nbytes: bytes of its weight.
        reason: why.
    """

    name: str
    nbytes: int
    reason: str


def places_of(model: nn.Module, kinds: type | tuple[type, ...]) -> dict[nn.Module, list[Place]]:
    """Every module of ``kinds`` in ``model`` with all its places, depth first.

    A module whose parent is reached by several paths hangs at one place: that parent's. The table in a `BagOf` is
    a part of it and hangs nowhere by that.
    """
    found: dict[nn.Module, list[Place]] = {}
    seen: set[nn.Module] = set()

    def visit(parent: nn.Module, prefix: str) -> None:
        seen.add(parent)
        for key, child in parent._modules.items():
            if isinstance(child, kinds) and not isinstance(parent, BagOf):
                found.setdefault(child, []).append(Place(parent, key, prefix + key))
            if child is not None and child not in seen:
                visit(child, f"{prefix}{key}.")

    visit(model, "")
    return found


def find_tables(
    model: nn.Module, match: str | Sequence[str] = "*", min_tokens: int = 0, frozen: bool = False
) -> tuple[list[Table], list[LeftAlone]]:
    """(tables to compress, tables to leave alone with the reason).

    Args:
        model: any module that holds `torch.nn.Embedding` or `torch.nn.EmbeddingBag`.
        match: patterns as in `fnmatch`, of which one of a table's paths has to fit one.
        min_tokens: smaller tables are left alone.
        frozen: take tables without gradient too.

    Raises:
        TypeError, ValueError: no model, or a pattern fits no table.
    """
    patterns = _patterns(match)
    _check_model(model)
    shared: dict[int, list[tuple[Any, list[Place]]]] = {}
    left = []
    for module, places in places_of(model, (nn.Embedding, nn.EmbeddingBag, BagOf, CompressedEmbedding)).items():
        if isinstance(module, (BagOf, CompressedEmbedding)):
            left.append(LeftAlone(places[0].path, module.nbytes, "it is compressed already"))
        elif parametrize.is_parametrized(module):
            left.append(LeftAlone(places[0].path, 0, "its weight is parametrized"))
        else:
            shared.setdefault(id(module.weight), []).append((module, places))
    elsewhere = _other_owners(model, shared)
    tables = []
    for key, modules in shared.items():
        # The view of a bag is made from a plain table, not the other way round.
        modules.sort(key=lambda pair: isinstance(pair[0], nn.EmbeddingBag))
        table = Table(modules[0][0], modules)
        reason = None
        if not any(fnmatchcase(path, pattern) for path in table.paths for pattern in patterns):
            reason = "its name does not match"
        reason = reason or _reason(table, elsewhere.get(key), min_tokens, frozen)
        if reason:
            left += [LeftAlone(places[0].path, table.nbytes, reason) for _, places in modules]
        else:
            tables.append(table)
    _check_patterns(patterns, [*(path for table in tables for path in table.paths), *(entry.name for entry in left)])
    return tables, left


def check_any(tables: Sequence[Table], left: Sequence[LeftAlone], match: str | Sequence[str]) -> None:
    """Raises ValueError where no table is left to compress; the text says why each stays."""
    if not tables:
        reasons = "; ".join(f"{entry.name}: {entry.reason}" for entry in left[:10]) or "it holds no embedding table"
        raise ValueError(f"match={match!r} leaves nothing of the model to compress: {reasons}")


def _reason(table: Table, owner: str | None, min_tokens: int, frozen: bool) -> str | None:
    """Why a matching table has to stay."""
    weight = table.module.weight
    for module, _ in table.modules:
        base = nn.EmbeddingBag if isinstance(module, nn.EmbeddingBag) else nn.Embedding
        if type(module).forward is not base.forward or "forward" in vars(module):
            return f"{type(module).__name__} has a forward of its own"
        extra = [*(set(module._parameters) - {"weight"}), *module._buffers, *module._modules]
        if extra:
            return f"{type(module).__name__} holds more than a weight: {', '.join(sorted(extra))}"
    if owner is not None:
        return f"its weight is shared with {owner}, which is no table"
    if weight.is_meta or not weight.is_floating_point():
        return f"its weight is {'on the meta device' if weight.is_meta else weight.dtype}"
    if not weight.requires_grad and not frozen:
        return "it is frozen (frozen=True takes it too)"
    if weight.shape[0] < min_tokens:
        return f"it has {weight.shape[0]} tokens, fewer than min_tokens={min_tokens}"
    different = [name for name in SETTINGS if len({getattr(module, name) for module, _ in table.modules}) > 1]
    if different:
        return f"tables that share its weight differ in {', '.join(different)}"
    return None


def _other_owners(model: nn.Module, shared: dict[int, list[Any]]) -> dict[int, str]:
    """Paths under which modules that are no tables hold the weight of one."""
    found = {}
    for path, module in model.named_modules():
        if not isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            for key, param in module._parameters.items():
                if isinstance(param, Tensor) and id(param) in shared:
                    found[id(param)] = f"{path}.{key}" if path else key
    return found


def _patterns(match: str | Sequence[str]) -> list[str]:
    patterns = [match] if isinstance(match, str) else list(match)
    if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
        raise TypeError(f"match must be a pattern such as 'embeddings.*', or a list of them; got {match!r}")
    return patterns


def _check_patterns(patterns: list[str], paths: list[str]) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in paths):
            known = ", ".join(paths[:20]) + (", ..." if len(paths) > 20 else "") if paths else "none"
            raise ValueError(f"match={pattern!r} fits no embedding table of the model; its tables: {known}")


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, (nn.Embedding, nn.EmbeddingBag)):
        raise ValueError(f"model is itself an {type(model).__name__}; give the module that holds it")
    for path, module in model.named_modules():
        kind = type(module).__name__
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(f"{path or 'model'} is a {kind}: compress the model before scripting it")
        if any(base.__name__ in _WRAPPERS for base in type(module).__mro__):
            raise ValueError(f"{path or 'model'} is a {kind}: compress the model before wrapping it")
