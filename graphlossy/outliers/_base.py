"""The interface of every detector, in PyGOD's vocabulary: fit, decision_score_, threshold_, label_, predict."""

from __future__ import annotations

import copy
import inspect
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from graphlossy.outliers._checks import Graph, check_number, prepare

__all__ = ["Detector"]

_Self = TypeVar("_Self", bound="Detector")


class Detector(ABC):
    """An unsupervised outlier detector: a score for each node of one graph, higher for more outlying ones.

    Labels are never read: neither ``data.y`` nor ``label``, which is there for PyGOD's signature. Constructor arguments
    are kept as attributes of the same name; what ``fit`` finds ends with an underscore.

    Args:
        contamination: expected share of outliers, in (0, 0.5]; sets ``threshold_``, never the scores.
        seed: of all that is random; the same seed gives the same scores. None: drawn from torch's generator in each
            ``fit``, so ``torch.manual_seed`` governs it.

    Attributes:
        decision_score_: [N] float32 on the CPU, after ``fit``.
        threshold_: the (1 - contamination) quantile of the scores, linearly interpolated.
        label_: [N] int64, 1 where the score exceeds the threshold.
        seed_: the seed that was used.
        on_epoch: called with (epoch from 0, loss) by detectors that iterate; None or a function.

    Example:
        >>> from torch_geometric.data import Data
        >>> class Degree(Detector):
        ...     name, title, paper, seeded, memory = "example", "Example", "", False, "O(n)"
        ...     def _score(self, graph):
        ...         return graph.degrees
        >>> data = Data(x=torch.ones(4, 1), edge_index=torch.tensor([[0, 0, 0], [1, 2, 3]]))
        >>> detector = Degree(contamination=0.25).fit(data)
        >>> detector.decision_score_.tolist(), detector.label_.tolist()
        ([3.0, 0.0, 0.0, 0.0], [1, 0, 0, 0])
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    seeded: ClassVar[bool]
    memory: ClassVar[str]
    needs: ClassVar[Sequence[str]] = ("x", "edges")  # what the graph must have
    inductive: ClassVar[bool] = False  # whether it can score a graph that it was not fitted on

    on_epoch: Callable[[int, float], None] | None = None

    decision_score_: Tensor
    threshold_: float
    label_: Tensor
    seed_: int

    def __init__(self, *, contamination: float = 0.1, seed: int | None = None) -> None:
        self.contamination = float(check_number("contamination", contamination, 0, 0.5, open_low=True))
        if seed is not None:
            check_number("seed", seed, 0, 2**63 - 1, integer=True)
        self.seed = seed

    @abstractmethod
    def _score(self, graph: Graph) -> Tensor:
        """Fits to ``graph`` and returns the score of each node, [N]."""

    def _score_new(self, graph: Graph) -> Tensor:
        """Scores another graph with what was fitted, [N]; written by inductive detectors."""
        raise TypeError(f"{type(self).__name__} says that it is inductive, but cannot score another graph")

    def fit(self: _Self, data: Any, label: Any = None) -> _Self:
        """Fits to a graph and scores its nodes.

        Args:
            data: PyG ``Data`` with x [N, F] and edge_index [2, E]; duplicate edges count once. Not changed.
            label: not read.

        Raises:
            TypeError, ValueError: the graph cannot be used (see ``graphlossy.outliers.prepare``).
            FloatingPointError: a loss or a score is not finite.
        """
        graph = prepare(data, needs=self.needs)
        self.seed_ = int(torch.randint(2**62, ())) if self.seed is None else int(self.seed)
        score = _checked(self, self._score(graph), graph)
        self.decision_score_ = score
        self.threshold_ = float(np.percentile(score.numpy().astype(np.float64), 100 * (1 - self.contamination)))
        self.label_ = (score.double() > self.threshold_).long()
        return self

    def decision_function(self, data: Any, label: Any = None) -> Tensor:
        """Scores of another graph, [N] float32.

        An inductive detector applies what it has learned. A transductive one has learned about the nodes of its own
        graph only: a copy of it is fitted to ``data``, with a warning, as PyGOD does; this detector stays as it is.

        Raises:
            RuntimeError: not fitted.
            TypeError, ValueError: as ``fit``.
        """
        self._check_fitted()
        if self.inductive:
            graph = prepare(data, needs=self.needs)
            return _checked(self, self._score_new(graph), graph)
        return self._refitted(data).decision_score_

    def predict(
        self,
        data: Any = None,
        label: Any = None,
        return_pred: bool = True,
        return_score: bool = False,
        return_prob: bool = False,
        prob_method: str = "linear",
        return_conf: bool = False,
    ) -> Tensor | tuple[Tensor, ...]:
        """Labels, scores, probabilities and confidence, those that are asked for, in this order.

        Args:
            data: the graph; None for the fitted one. A transductive detector is fitted to another graph as
                :meth:`decision_function` does it, and what follows is by the threshold and scale of that copy.
            label: not read.
            return_pred: [N] int64, 1 where the score exceeds ``threshold_``.
            return_score: [N] float32.
            return_prob: [N] in [0, 1].
            prob_method: ``"linear"``, (s - min) / (max - min) over the fitted scores, or ``"unify"``,
                max(0, erf((s - mean) / (std sqrt 2))) (Kriegel et al., SDM 2011, section 4.2).
            return_conf: [N] in [0, 1], how surely the label would be the same under a slightly different sample
                (Perini et al., ECML-PKDD 2020, equation 5). Needs scipy.

        Returns:
            One tensor, or a tuple of them where several are asked for.

        Raises:
            RuntimeError: not fitted.
            TypeError, ValueError: as ``fit``; or ``prob_method`` is unknown, or nothing is asked for.
        """
        self._check_fitted()
        if not (return_pred or return_score or return_prob or return_conf):
            raise ValueError("ask for at least one of return_pred, return_score, return_prob, return_conf")
        fitted, score = self, self.decision_score_
        if data is not None and self.inductive:
            score = self.decision_function(data)
        elif data is not None:
            fitted = self._refitted(data)
            score = fitted.decision_score_
        out: list[Tensor] = []
        if return_pred:
            out.append((score.double() > fitted.threshold_).long())
        if return_score:
            out.append(score)
        if return_prob:
            out.append(fitted._probability(score, prob_method))
        if return_conf:
            out.append(fitted._confidence(score))
        return out[0] if len(out) == 1 else tuple(out)

    def _refitted(self: _Self, data: Any) -> _Self:
        """A copy, fitted to another graph, with a warning at the line that called the method that called this."""
        warnings.warn(
            f"{self.title} is transductive: a copy of the detector is fitted to the new graph",
            UserWarning,
            stacklevel=3,
        )
        return copy.copy(self).fit(data)

    def _probability(self, score: Tensor, method: str) -> Tensor:
        fitted = self.decision_score_
        if method == "linear":
            spread = float(fitted.max() - fitted.min()) or 1.0  # equal scores: all 0
            return ((score - fitted.min()) / spread).clamp(0, 1)
        if method == "unify":
            spread = float(fitted.std(correction=min(1, len(fitted) - 1))) or 1.0
            return torch.erf((score - fitted.mean()) / (spread * 2**0.5)).clamp(0, 1)
        raise ValueError(f"prob_method must be 'linear' or 'unify', got {method!r}")

    def _confidence(self, score: Tensor) -> Tensor:
        try:
            from scipy.stats import binom
        except ImportError as error:
            raise ImportError("return_conf needs scipy: pip install graphlossy[outliers]") from error
        fitted = np.sort(self.decision_score_.numpy())
        n = len(fitted)
        inliers = n - int(n * self.contamination)
        below = np.searchsorted(fitted, score.numpy(), side="right")
        outlying = 1 - binom.cdf(inliers, n, (1 + below) / (2 + n))
        labelled = score.double().numpy() > self.threshold_
        return torch.from_numpy(np.where(labelled, outlying, 1 - outlying)).to(torch.float32)

    def _check_fitted(self) -> None:
        if not hasattr(self, "decision_score_"):
            raise RuntimeError(f"this {type(self).__name__} is not fitted yet: call fit(data) first")

    @classmethod
    def search_space(cls, dataset: str) -> dict[str, tuple[Any, ...]]:
        """What BOND's random search draws for a data set (Liu et al., NeurIPS 2022, appendix): argument -> values."""
        return {}

    @classmethod
    def fixed(cls, dataset: str) -> dict[str, Any]:
        """Arguments of the fixed protocol where they are not the defaults."""
        return {}

    @classmethod
    def parameter_names(cls) -> tuple[str, ...]:
        """The names of all constructor arguments, those of the base classes included, sorted."""
        names = set()
        for base in cls.__mro__:
            if "__init__" in vars(base) and base is not object:
                parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
                names |= {p.name for p in parameters if p.name != "self" and p.kind is not p.VAR_KEYWORD}
        return tuple(sorted(names))

    def get_params(self) -> dict[str, Any]:
        """The constructor arguments of this detector."""
        return {name: getattr(self, name) for name in self.parameter_names()}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.get_params().items())})"


def _checked(detector: Detector, score: Tensor, graph: Graph) -> Tensor:
    score = score.detach().to("cpu", torch.float32)
    if score.shape != (graph.num_nodes,):
        raise ValueError(f"{detector.title} returned scores of shape {list(score.shape)} for {graph.num_nodes} nodes")
    bad = ~torch.isfinite(score)
    if bool(bad.any()):
        raise FloatingPointError(
            f"{detector.title} gave {int(bad.sum())} of {len(score)} nodes a score that is not finite, "
            f"the first is node {int(bad.nonzero()[0])}"
        )
    return score
