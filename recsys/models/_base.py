"""What the click models have in common: the tables of a model, its first-order weights and its perceptrons."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Bias", "CTRModel", "MLP", "PADDING", "check_hidden", "table_keys"]

PADDING = 1  # the id that pads sequences; id 0 stands for tokens that were never seen
KINDS = ("token", "token_seq", "float")


class MLP(nn.Sequential):
    """Linear layers with ReLU and dropout between them.

    Args:
        inputs: width of the input.
        hidden: widths of the hidden layers; empty leaves one linear layer.
        outputs: width of the output; None ends with the last hidden layer, its ReLU and dropout.
        dropout: probability.
    """

    def __init__(self, inputs: int, hidden: Sequence[int], outputs: int | None, dropout: float = 0.0) -> None:
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Linear(inputs, width), nn.ReLU()]
            layers += [nn.Dropout(dropout)] if dropout else []
            inputs = width
        if outputs is not None:
            layers.append(nn.Linear(inputs, outputs))
        super().__init__(*layers)
        self.width = inputs if outputs is None else outputs


class CTRModel(nn.Module):
    """A model of the probability of a click: logits [B] from a batch of named fields.

    Every field of tokens has, under its key of `table_keys`, one `torch.nn.Embedding` [V, d] (a mean
    `torch.nn.EmbeddingBag` for a sequence) in `embeddings`, and one [V, 1] with its first-order weights in `linear`; a
    float field x has a vector of width d in `numeric` that is multiplied by x, and a weight in `numeric_linear`. Tables
    may be swapped for compressed ones: the model only calls them.

    Args:
        fields: objects with ``name``, ``kind`` (``"token"``, ``"token_seq"`` or ``"float"``) and ``num_tokens``, as
            `graphlossy.recsys.data.Field`.
        embedding_dim: width d, the same for all fields.
        first_order: whether there are first-order weights.
        init_std: standard deviation of the initial embeddings and first-order weights.

    Raises:
        ValueError: no field, two of one name, a field without tokens, or a size that is not positive.
    """

    def __init__(
        self, fields: Iterable[Any], embedding_dim: int = 16, first_order: bool = True, init_std: float = 0.01
    ) -> None:
        super().__init__()
        fields = tuple(fields)
        _check(fields, embedding_dim, init_std)
        self.embedding_dim = embedding_dim
        self.field_names = tuple(field.name for field in fields if field.kind != "float")
        self.float_names = tuple(field.name for field in fields if field.kind == "float")
        tables = [field for field in fields if field.kind != "float"]
        self.keys = table_keys(self.field_names)
        self.embeddings = nn.ModuleDict({self.keys[f.name]: _table(f, embedding_dim, init_std) for f in tables})
        linear = {self.keys[f.name]: _table(f, 1, init_std) for f in tables} if first_order else {}
        self.linear = nn.ModuleDict(linear)
        count = len(self.float_names)
        self.numeric = nn.Parameter(torch.randn(count, embedding_dim) * init_std) if count else None
        self.numeric_linear = nn.Parameter(torch.zeros(count)) if count and first_order else None
        self.bias = nn.Parameter(torch.zeros(()))

    @property
    def num_fields(self) -> int:
        """Vectors that `embed` gives: token fields and float fields."""
        return len(self.field_names) + len(self.float_names)

    def embed(self, batch: Mapping[str, Tensor]) -> Tensor:
        """[B, fields, d]: the rows of the tokens, then the vectors of the float fields times their values."""
        found = [self.embeddings[key](_values(batch, name)) for name, key in self.keys.items()]
        rows = torch.stack(found, dim=1) if found else None
        if self.numeric is None:
            return rows
        scaled = self.floats(batch).unsqueeze(2) * self.numeric
        return scaled if rows is None else torch.cat([rows, scaled.to(rows.dtype)], dim=1)

    def floats(self, batch: Mapping[str, Tensor]) -> Tensor:
        """[B, float fields]: their values."""
        found = torch.stack([_values(batch, name) for name in self.float_names], dim=1)
        return found.to(self.bias.dtype)

    def first_order(self, batch: Mapping[str, Tensor]) -> Tensor:
        """[B], or a scalar where there are no first-order weights: the bias plus the weights of the tokens."""
        total = self.bias
        for name, key in self.keys.items() if len(self.linear) else ():
            total = total + self.linear[key](_values(batch, name)).squeeze(-1)
        if self.numeric_linear is not None:
            total = total + self.floats(batch) @ self.numeric_linear
        return total

    @abstractmethod
    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits [B].

        Args:
            batch: for every field ``name``: int64 [B] for tokens, int64 [B, L] padded with 1 for sequences, float [B].

        Raises:
            KeyError: a field is missing; the text names it.
        """


class Bias(CTRModel):
    """First-order weights only: a bias for every token, and no embeddings. The row that any method has to beat.

    Args:
        fields, init_std: as for `CTRModel`.

    Example:
        >>> from types import SimpleNamespace as Field
        >>> model = Bias([Field(name="user", kind="token", num_tokens=5)])
        >>> model({"user": torch.tensor([2, 4])}).shape
        torch.Size([2])
    """

    def __init__(self, fields: Iterable[Any], embedding_dim: int = 1, init_std: float = 0.01) -> None:
        super().__init__(fields, 1, True, init_std)  # whatever the width: its tables are dropped
        self.embeddings = nn.ModuleDict()
        self.numeric = None

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits [B]."""
        return self.first_order(batch)


def check_hidden(hidden: Sequence[int], dropout: float) -> tuple[int, ...]:
    """The widths of hidden layers as a tuple; raises unless they are positive and ``dropout`` is a probability."""
    widths = tuple(hidden)
    for width in widths:
        if isinstance(width, bool) or not isinstance(width, int) or width < 1:
            raise ValueError(f"hidden must be positive widths such as (64, 32), got {widths}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be at least 0 and below 1, got {dropout}")
    return widths


def table_keys(names: Iterable[str]) -> dict[str, str]:
    """Under which name the table of each field hangs: its own, but for dots and names that torch's modules have.

    Example:
        >>> table_keys(["user", "type", "item.id"])
        {'user': 'user', 'type': 'type_', 'item.id': 'item_id'}
    """
    found: dict[str, str] = {}
    for name in names:
        key = name.replace(".", "_") or "_"
        while key in found.values() or hasattr(nn.ModuleDict, key) or key in vars(_EMPTY):
            key += "_"
        found[name] = key
    return found


_EMPTY = nn.ModuleDict()


def _check(fields: tuple[Any, ...], embedding_dim: int, init_std: float) -> None:
    if not fields:
        raise ValueError("fields must not be empty: a model needs at least one column")
    names = [field.name for field in fields]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"fields must have different names, got {name!r} twice")
    for field in fields:
        if field.kind not in KINDS:
            raise ValueError(f"field {field.name!r}: kind must be one of {KINDS}, got {field.kind!r}")
        if field.kind != "float" and field.num_tokens < 1 + (field.kind == "token_seq"):
            raise ValueError(f"field {field.name!r} has no tokens (num_tokens = {field.num_tokens})")
    if isinstance(embedding_dim, bool) or not isinstance(embedding_dim, int) or embedding_dim < 1:
        raise ValueError(f"embedding_dim must be a positive int, got {embedding_dim!r}")
    if not 0 < init_std < float("inf"):
        raise ValueError(f"init_std must be a positive number, got {init_std}")


def _table(field: Any, width: int, std: float) -> nn.Embedding | nn.EmbeddingBag:
    if field.kind == "token":
        table: nn.Embedding | nn.EmbeddingBag = nn.Embedding(field.num_tokens, width)
    else:
        table = nn.EmbeddingBag(field.num_tokens, width, mode="mean", padding_idx=PADDING)
    nn.init.normal_(table.weight, std=std)
    if field.kind == "token_seq":
        with torch.no_grad():
            table.weight[PADDING] = 0
    return table


def _values(batch: Mapping[str, Tensor], name: str) -> Tensor:
    try:
        return batch[name]
    except KeyError:
        have = ", ".join(sorted(batch)) or "none"
        raise KeyError(f"the batch has no field {name!r}; it has {have}") from None
