"""The settings of a training experiment, checked when they are made."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from graphlossy.train._checks import (
    NOT_REWEIGHTED,
    check_budget,
    check_choice,
    check_flag,
    check_number,
    check_sampling,
    check_size,
    check_text,
    parse_sparsify,
)
from graphlossy.train._errors import TrainError
from graphlossy.train._models import MODELS
from graphlossy.train._presets import PRESETS, preset_settings

__all__ = ["ADJACENCIES", "BITS", "SCHEMES", "Scheme", "TrainConfig"]

BITS = (1, 2, 3, 4, 8)
SCHEMES = ("baseline", "compressed")
ADJACENCIES = ("edge_index", "csr")
MOST_THREADS = 1024
LARGEST = 1e30  # far beyond use, and within float32
# Their subgraphs leave edges out with unequal probabilities, which weights make up for.
WEIGHTED_SAMPLERS = ("degree-neighbor", "saint-node", "saint-edge", "saint-walk", "sparsify")


@dataclass(frozen=True)
class Scheme:
    """What one column of the comparison keeps for the backward pass: all of it, some bits each, or a byte budget.

    Attributes:
        label: its name in tables, files and metrics.
        bits: bits per stored element; None for the baseline and for a budget.
        budget: bytes allowed for all saved tensors, such as ``"1.5GiB"``; None without one.
    """

    label: str
    bits: int | None = None
    budget: str | None = None

    @property
    def compressed(self) -> bool:
        """Whether this scheme compresses anything."""
        return self.bits is not None or self.budget is not None


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training experiment: every scheme is trained from the same weights once per seed.

    Args:
        dataset: embedded, OGB, Planetoid or generated name, ``.npz`` file or folder, as
            :func:`graphlossy.datasets.load` takes it.
        root: folder of downloaded and generated data; None takes the default of :func:`graphlossy.datasets.load`.
        scale: size of a generated graph as a share of the original's; None takes the default.
        model: ``"gcn"``, ``"sage"``, ``"gat"``, ``"gcn2"`` or ``"gin"``.
        layers: number of graph convolutions.
        hidden: width of the hidden layers.
        heads: attention heads of ``"gat"``; must divide ``hidden``.
        dropout: probability that dropout zeroes an element.
        norm: BatchNorm between the layers.
        bits: bits per stored element; one compressed scheme for each.
        budget: bytes for the saved tensors, such as ``"1.5GiB"``; takes the place of ``bits``.
        schemes: ``"baseline"``, ``"compressed"`` or both.
        epochs: passes of each run over the training nodes: one step each, or one for every mini-batch of ``sampler``.
        seeds: number of runs of each scheme, with seeds ``seed, seed + 1, ...``.
        seed: the first seed.
        split: number of the split into training, validation and test nodes; None gives every seed its own.
        lr: learning rate of Adam.
        weight_decay: L2 penalty of Adam.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        amp: bfloat16 autocast in the forward pass, of every scheme.
        adj: how the model is given the graph, ``"edge_index"`` or ``"csr"`` (a sparse CSR ``adj_t``). Where the edges
            carry weights it is always ``"csr"``.
        threads: CPU threads; None leaves torch's choice.
        sampler: kind of mini-batch of :func:`graphlossy.sampler.make_loader`; None trains on the full batch.
        batch_size: training nodes of a neighbour-sampled batch; nodes, edges or walks of a GraphSAINT subgraph;
            clusters of a cluster batch. None: see :func:`graphlossy.train.sampling_defaults`.
        num_neighbors: neighbours drawn of each node, one number a layer, -1 for all; None is 15, 10, 5, 5, ...
        num_parts: clusters of ``"cluster"``.
        walk_length: steps of ``"saint-walk"``.
        num_workers: processes that prepare the batches; the batches do not depend on it.
        sparsify: thins the graph once before training: ``"METHOD:SHARE"``, such as ``"degree:0.5"``, with a method of
            :func:`graphlossy.sparsify.sparsify` and the share of edges to keep. With ``sampler="sparsify"`` it is
            thinned anew in every epoch.
        sparsify_eval: evaluates on the thinned graph too, as DSpar does; otherwise on the full graph.
        reweight: weighs the edges that are kept so that sums over neighbours are right in expectation. None: yes,
            except for ``"gat"``, which takes no weights, and for ``"local-degree"``, whose choice is not random.
        eval_every: epochs from one evaluation to the next; the last epoch is always evaluated.
        eval_batch: nodes at a time in a layer-by-layer evaluation; None evaluates in one forward pass.
        gradient_bits: bits of a gradient's number on its way between processes, see
            :func:`graphlossy.train.gradients.compress_gradients`; None sends float32. One process sends nothing.
        gradient_feedback: add what rounding a gradient lost to the next one.
        preset: the name of the settings that this started from, see :meth:`from_preset`; changes nothing by itself.

    Raises:
        TrainError: a setting is out of range; the message names it and what is allowed.

    Example:
        >>> config = TrainConfig(model="sage", bits=(2, 4))
        >>> [scheme.label for scheme in config.comparison()]
        ['baseline', '2-bit', '4-bit']
        >>> TrainConfig(bits=(5,))
        Traceback (most recent call last):
        ...
        graphlossy.train._errors.TrainError: bits must be 1, 2, 3, 4 or 8, got 5
    """

    dataset: str = "wordnet-verbs"
    model: str = "gcn"
    layers: int = 3
    hidden: int = 128
    heads: int = 4
    dropout: float = 0.5
    norm: bool = True
    bits: tuple[int, ...] = (2,)
    budget: str | None = None
    schemes: tuple[str, ...] = SCHEMES
    epochs: int = 60
    seeds: int = 3
    seed: int = 0
    split: int | None = 0
    lr: float = 0.01
    weight_decay: float = 0.0
    device: str = "auto"
    amp: bool = False
    adj: str = "edge_index"
    threads: int | None = None
    root: str | None = None
    scale: float | None = None
    sampler: str | None = None
    batch_size: int | None = None
    num_neighbors: tuple[int, ...] | None = None
    num_parts: int | None = None
    walk_length: int | None = None
    num_workers: int = 0
    sparsify: str | None = None
    sparsify_eval: bool = False
    reweight: bool | None = None
    eval_every: int = 1
    eval_batch: int | None = None
    gradient_bits: int | None = None
    gradient_feedback: bool = False
    preset: str | None = None

    def __post_init__(self) -> None:
        check_text("dataset", self.dataset)
        for name in ("root", "budget"):
            if getattr(self, name) is not None:
                check_text(name, getattr(self, name))
        for name in ("norm", "amp", "sparsify_eval", "gradient_feedback"):
            check_flag(name, getattr(self, name))
        if self.reweight is not None:
            check_flag("reweight", self.reweight)
        for name in ("bits", "schemes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.num_neighbors is not None:
            object.__setattr__(self, "num_neighbors", tuple(self.num_neighbors))
        check_choice("model", self.model, tuple(MODELS))
        check_choice("adj", self.adj, ADJACENCIES)
        if self.preset is not None:
            check_choice("preset", self.preset, tuple(PRESETS))
        for scheme in self.schemes:
            check_choice("schemes", scheme, SCHEMES)
        if not self.schemes or len(set(self.schemes)) < len(self.schemes):
            raise TrainError(f"schemes must name baseline, compressed or both once, got {','.join(self.schemes)!r}")
        for bits in self.bits:
            if bits not in BITS:
                raise TrainError(f"bits must be 1, 2, 3, 4 or 8, got {bits}")
        if self.gradient_bits is not None and (isinstance(self.gradient_bits, bool) or self.gradient_bits not in BITS):
            raise TrainError(f"gradient_bits must be 1, 2, 3, 4 or 8, got {self.gradient_bits!r}")
        if self.gradient_feedback and self.gradient_bits is None:
            raise TrainError("gradient_feedback needs gradient_bits, such as 4")
        if not self.bits or len(set(self.bits)) < len(self.bits):
            raise TrainError(f"bits must be different numbers out of 1, 2, 3, 4 and 8, got {list(self.bits)}")
        for name, most in (("layers", 10_000), ("hidden", 2**24), ("heads", 2**24), ("epochs", None), ("seeds", None)):
            check_size(name, getattr(self, name), 1, most)
        check_size("eval_every", self.eval_every, 1)
        for name, most in (("threads", MOST_THREADS), ("eval_batch", None)):
            if getattr(self, name) is not None:
                check_size(name, getattr(self, name), 1, most)
        if self.split is not None:
            check_size("split", self.split, 0)
        check_size("seed", self.seed, 0)
        if self.seed + self.seeds > 2**63:
            raise TrainError(f"seed must be below 2**63, got {self.seed}")
        if not 0 <= self.dropout < 1:
            raise TrainError(f"dropout must be at least 0 and below 1, got {self.dropout}")
        check_number("lr", self.lr, LARGEST)
        check_number("weight_decay", self.weight_decay, LARGEST, zero=True)
        if self.scale is not None:
            check_number("scale", self.scale, LARGEST)
        if self.model == "gat" and self.hidden % self.heads:
            raise TrainError(
                f"hidden must be a multiple of heads for gat, got hidden {self.hidden}, heads {self.heads}"
            )
        if self.budget is not None:
            check_budget(self.budget)
            if "compressed" not in self.schemes:
                raise TrainError("budget is for compressed runs, but schemes leaves them out")
        check_sampling(self)

    @classmethod
    def from_preset(cls, preset: str, dataset: str, **settings: Any) -> TrainConfig:
        """The settings of a preset, with those that are given in place of its own.

        Args:
            preset: ``"ogb"``: OGB's reference configuration for the data set.
            dataset: ``"ogbn-arxiv"``, ``"ogbn-products"``, ``"ogbn-proteins"`` or their stand-ins ``"synth-..."``.
            settings: any others of :class:`TrainConfig`.

        Raises:
            TrainError: there is no such preset for the data set, or a setting is out of range.

        Example:
            >>> config = TrainConfig.from_preset("ogb", "ogbn-arxiv", model="sage", epochs=5)
            >>> config.layers, config.hidden, config.norm, config.seeds, config.epochs
            (3, 256, True, 10, 5)
        """
        found = preset_settings(preset, dataset, settings.get("sampler"))
        return cls(dataset=dataset, preset=preset, **{**found, **settings})

    @property
    def reweighted(self) -> bool:
        """Whether the edges that sparsification keeps carry weights."""
        if self.sparsify is None or self.reweight is False:
            return False
        return self.model != "gat" and parse_sparsify(self.sparsify)[0] not in NOT_REWEIGHTED

    @property
    def thinned_once(self) -> bool:
        """Whether the graph is thinned before training."""
        return self.sparsify is not None and self.sampler != "sparsify"

    @property
    def normalized_outside(self) -> bool:
        """Whether GCN's normalisation is part of the graph instead of the layer.

        It is where training and evaluation see different graphs, whose degrees are then those of the full graph, and
        for a sparse matrix, of which every layer would keep a normalised copy.
        """
        apart = self.sampler is not None or self.sparsify is not None or self.eval_batch is not None
        return self.model in ("gcn", "gcn2") and (apart or self.adj == "csr")

    @property
    def needs_csr(self) -> bool:
        """Whether the model is given a sparse CSR matrix, because that was asked for or the edges carry weights."""
        weighted = self.reweighted or self.normalized_outside
        drawn = self.sampler in WEIGHTED_SAMPLERS or (self.sampler == "neighbor" and self.model == "gin")
        return self.adj == "csr" or weighted or (drawn and self.model != "gat")

    def comparison(self) -> tuple[Scheme, ...]:
        """The schemes to train, the baseline first."""
        found = [Scheme("baseline")] if "baseline" in self.schemes else []
        if "compressed" in self.schemes:
            if self.budget is not None:
                found.append(Scheme(f"budget-{self.budget.replace(' ', '')}", budget=self.budget))
            else:
                found.extend(Scheme(f"{bits}-bit", bits=bits) for bits in self.bits)
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values for JSON."""
        values = asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """Settings back from :meth:`to_dict`.

        Raises:
            TrainError: ``values`` holds an unknown or wrongly typed setting.
        """
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise TrainError(f"unknown settings {', '.join(sorted(unknown))}; was the run made by another version?")
        try:
            return cls(**values)
        except TypeError as error:
            raise TrainError(f"settings of the wrong type: {error}") from None
