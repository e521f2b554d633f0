"""Runs the probes that a forecast needs, each once, and checks the first forecast against one more probe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from graphlossy._plan._fit import Forecast, fit
from graphlossy._plan._measure import Trace, step_trace
from graphlossy._plan._probe import Forward
from graphlossy._plan._schemes import FLOAT32, Scheme
from graphlossy._plan._sizes import Design

__all__ = ["Predictor"]

TOLERANCE = 0.05  # what a forecast may be off on the checking probe


class Predictor:
    """Forecasts for one model.

    Args:
        model: left as it is.
        make_probe: makes the input of given sizes.
        forward: (model, probe) -> loss.
        route: as in ``graphlossy.compress``.
        seed: of the model's own randomness.
        device: where the model is.
    """

    def __init__(self, model: nn.Module, make_probe: Callable[[Mapping[str, int]], Any], forward: Forward,
                 route: bool, seed: int, device: torch.device) -> None:  # fmt: skip
        self._model, self._make_probe, self._forward = model, make_probe, forward
        self._route, self._seed, self._device = route, seed, device
        self._traces: dict[tuple[Any, ...], Trace] = {}
        self._checked: set[tuple[Any, ...]] = set()

    def trace(self, scheme: Scheme, sizes: Mapping[str, int]) -> Trace:
        """What a step at ``sizes`` saves and needs, found by running it."""
        key = (scheme, *sorted(sizes.items()))
        if key not in self._traces:
            probe = self._make_probe(sizes)
            try:
                self._traces[key] = step_trace(
                    self._model, probe, self._forward, scheme, self._route, self._seed, self._device
                )
            except Exception as error:
                if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
                    raise
                raise ValueError(
                    f"the model failed on a probe of {_text(sizes)} ({scheme.name}): {type(error).__name__}: {error}; "
                    "if it needs other arguments or another loss, give forward=, called with (model, probe)"
                ) from error
        return self._traces[key]

    def forecast(self, scheme: Scheme, design: Design) -> Forecast:
        """Bytes of ``scheme`` as functions of the sizes.

        Raises:
            ValueError: the memory of the model is not affine in the sizes.
        """
        found = fit([self.trace(scheme, sizes) for sizes in design.probes], design.probes, design.varied)
        if design.check is not None and scheme == FLOAT32:
            self._check(found, design.check)
        return found

    def _check(self, forecast: Forecast, sizes: Mapping[str, int]) -> None:
        key = tuple(sorted(sizes.items()))
        if key in self._checked:
            return
        trace = self.trace(FLOAT32, sizes)
        for what, got, said in (
            ("saves", trace.saved_bytes, forecast.saved_bytes(sizes)),
            ("needs at its peak", trace.peak_bytes, forecast.peak_bytes(sizes)),
        ):
            if abs(got - said) > TOLERANCE * max(got, 1):
                raise ValueError(
                    f"plan cannot extrapolate this model: on a probe of {_text(sizes)} it {what} {got} bytes, where "
                    f"growth in proportion to {', '.join(forecast.varied)} gives {said}; attention between all nodes "
                    "and dense adjacency matrices are such cases. Measure it with graphlossy.compress instead"
                )
        self._checked.add(key)


def _text(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{size:,} {name.replace('_', ' ')}" for name, size in sizes.items())
