"""Who else holds a table that is replaced: optimizers, lists for a penalty, feature objects.

A framework may keep a table's parameter or module outside the tree of modules. Such a reference would go on training,
penalising and keeping alive what the model no longer uses.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer

__all__ = ["replace_references"]

_DEPTH = 5  # of containers and objects inside each other
_MANY = 1000  # entries of a list or dictionary that are looked at: feature columns, no data
_FOREIGN = ("torch", "numpy", "pandas", "scipy", "builtins", "logging", "threading", "collections", "pyarrow", "polars")
_INTERNAL = {"_parameters", "_buffers", "_modules"}


class _Walk:
    def __init__(self, modules: dict[nn.Module, nn.Module]) -> None:
        self.modules = {id(old): new for old, new in modules.items()}
        self.params = {id(param): list(new.parameters()) for old, new in modules.items() for param in old.parameters()}
        self.seen: set[int] = set()
        self.optimizers: list[Optimizer] = []
        self.notes: list[str] = []

    def module(self, module: nn.Module, path: str, depth: int = 0) -> None:
        """Attributes of a module that are no parameters, buffers or submodules."""
        if id(module) in self.seen:
            return
        self.seen.add(id(module))
        for key, child in module._modules.items():
            if child is not None and id(child) in self.modules:  # of a module that hangs outside the tree
                module._modules[key] = self.modules[id(child)]
        self.mapping({k: v for k, v in vars(module).items() if k not in _INTERNAL}, path, depth, vars(module))

    def mapping(self, items: dict[Any, Any], path: str, depth: int, owner: dict[Any, Any]) -> None:
        for key, value in list(items.items())[:_MANY]:
            new = self.value(value, f"{path}.{key}", depth)
            if new is not value:
                owner[key] = new

    def value(self, value: Any, path: str, depth: int) -> Any:
        """What takes the place of ``value``; containers are changed in place."""
        if id(value) in self.modules:
            return self.modules[id(value)]
        if id(value) in self.params:
            found = self.params[id(value)]
            if len(found) == 1:
                return found[0]
            self.notes.append(f"{path} still holds the dense weight of a table that is several parameters now")
            return value
        if isinstance(value, Optimizer):
            self.optimizers.append(value)
        elif depth >= _DEPTH or id(value) in self.seen:
            return value
        elif isinstance(value, nn.Module):
            for name, part in value.named_modules():
                self.module(part, f"{path}.{name}" if name else path, depth + 1)
        elif isinstance(value, tuple):
            return self.tuple(value, path, depth)
        elif isinstance(value, list):
            self.seen.add(id(value))
            self.list(value, path, depth)
        elif isinstance(value, dict):
            self.seen.add(id(value))
            self.mapping(value, path, depth + 1, value)
        elif isinstance(getattr(value, "__dict__", None), dict) and not _foreign(value):
            self.seen.add(id(value))
            self.mapping(vars(value), path, depth + 1, vars(value))
        return value

    def list(self, values: list[Any], path: str, depth: int) -> None:
        """In a list a parameter, or a pair (name, parameter), makes way for all the new ones."""
        out: list[Any] = []
        placed: list[nn.Parameter] = []
        changed = False
        for at, value in enumerate(values):
            pair = isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str)
            found = self.params.get(id(value[1] if pair else value)) if at < _MANY else None
            if found is None:
                new = [self.value(value, f"{path}[{at}]", depth + 1) if at < _MANY else value]
            else:
                fresh = [p for p in found if all(p is not one for one in placed)]
                placed += fresh
                new = [(f"{value[0]}.{k}", param) for k, param in enumerate(fresh)] if pair else fresh
            changed = changed or len(new) != 1 or new[0] is not value
            out += new
        if changed:
            values[:] = out

    def tuple(self, values: tuple[Any, ...], path: str, depth: int) -> tuple[Any, ...]:
        new = [self.value(value, f"{path}[{at}]", depth + 1) for at, value in enumerate(values[:_MANY])]
        if all(a is b for a, b in zip(new, values, strict=False)):
            return values
        new += values[_MANY:]
        return type(values)(*new) if hasattr(values, "_fields") else type(values)(new)


def replace_references(
    model: nn.Module, modules: dict[nn.Module, nn.Module], optimizers: Iterable[Optimizer] = ()
) -> list[str]:
    """Puts the new modules and their parameters where ``model`` holds the old ones outside its tree of modules.

    Args:
        model: with the new modules in it.
        modules: the new module of every old one.
        optimizers: whose parameters are replaced too, besides those that the model holds as attributes.

    Returns:
        What is worth knowing, in words: optimizers that were changed, those that hold dead parameters.
    """
    walk = _Walk(modules)
    for path, module in model.named_modules():
        walk.module(module, path or "model")
    given = list(optimizers)
    for optimizer in {id(o): o for o in [*given, *walk.optimizers]}.values():
        changed, lost = _replace_in_optimizer(optimizer, walk.params)
        if changed:
            state = ", the state of the old tables is dropped" if lost else ""
            walk.notes.append(f"{type(optimizer).__name__}: {changed} parameters replaced{state}")
        elif any(optimizer is one for one in given):
            walk.notes.append(f"{type(optimizer).__name__}: holds none of the replaced tables")
        if changed and type(optimizer).__name__ == "SparseAdam":
            walk.notes.append("SparseAdam takes sparse gradients alone and cannot step projections, which are dense")
    for optimizer in _optimizers_of(walk.params):
        walk.notes.append(
            f"an {type(optimizer).__name__} made before holds the old tables: make it anew, or give it as optimizer="
        )
    return walk.notes


def _replace_in_optimizer(optimizer: Optimizer, dead: dict[int, list[nn.Parameter]]) -> tuple[int, bool]:
    """(old parameters that were replaced, whether they had a state)."""
    seen = {id(p) for group in optimizer.param_groups for p in group["params"]}
    count, lost = 0, False
    for group in optimizer.param_groups:
        names, params, param_names = group.get("param_names"), [], []
        for at, param in enumerate(group["params"]):
            found = dead.get(id(param))
            new = [param] if found is None else [p for p in found if p.requires_grad and id(p) not in seen]
            params += new
            if names is not None:
                param_names += [names[at]] if found is None else [f"{names[at]}.{k}" for k in range(len(new))]
            if found is not None:
                seen.update(id(p) for p in new)
                count += 1
                lost = optimizer.state.pop(param, None) is not None or lost
        group["params"] = params
        if names is not None:
            group["param_names"] = param_names
    return count, lost


def _optimizers_of(dead: dict[int, list[nn.Parameter]]) -> list[Optimizer]:
    """All optimizers of the process that hold a dead parameter."""
    found = [o for o in gc.get_objects() if issubclass(type(o), Optimizer)]
    return [o for o in found if any(id(p) in dead for g in getattr(o, "param_groups", ()) for p in g["params"])]


def _foreign(value: Any) -> bool:
    """Objects of the language or of libraries that hold no table: not looked into."""
    kind = type(value)
    return isinstance(value, type) or callable(value) or (kind.__module__ or "").partition(".")[0] in _FOREIGN
