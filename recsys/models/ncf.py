"""`NCF`: neural collaborative filtering, a generalised product and a perceptron."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from graphlossy.recsys.models._base import MLP, CTRModel, check_hidden

__all__ = ["NCF"]


class NCF(CTRModel):
    """NeuMF: GMF on user and item, an MLP on all fields, one linear layer over both (He et al., WWW 2017, eq. 12).

    The paper's two tables of a field are the two halves of one: the first d // 2 columns are for the product, the rest
    for the MLP. There are no first-order weights.

    Args:
        fields, embedding_dim, init_std: as for `CTRModel`; at least two fields of single tokens, and d of at least 2.
        user, item: the fields whose product is taken; None finds them by name (``user`` or ``item`` in it) and takes
            the first two where there are none.
        hidden: widths of the hidden layers.
        dropout: probability, after every hidden layer.

    Raises:
        ValueError: there are not two such fields.

    Example:
        >>> from types import SimpleNamespace as Field
        >>> model = NCF([Field(name=name, kind="token", num_tokens=5) for name in ("user_id", "item_id", "city")])
        >>> batch = {name: torch.tensor([2, 4]) for name in ("user_id", "item_id", "city")}
        >>> model.user, model.item, model(batch).shape
        ('user_id', 'item_id', torch.Size([2]))
    """

    def __init__(
        self,
        fields: Iterable[Any],
        embedding_dim: int = 16,
        hidden: Sequence[int] = (64, 32),
        dropout: float = 0.0,
        user: str | None = None,
        item: str | None = None,
        init_std: float = 0.01,
    ) -> None:
        fields = tuple(fields)
        super().__init__(fields, embedding_dim, False, init_std)
        if embedding_dim < 2:
            raise ValueError(f"embedding_dim must be at least 2 for NCF, half of it for each part; got {embedding_dim}")
        tokens = [field.name for field in fields if field.kind == "token"]
        self.user, self.item = _pair(tokens, user, item)
        self.split = embedding_dim // 2
        inputs = self.num_fields * (embedding_dim - self.split)
        self.deep = MLP(inputs, check_hidden(hidden, dropout), None, dropout)
        self.out = nn.Linear(self.split + self.deep.width, 1)

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits [B]."""
        vectors = self.embed(batch)
        first, second = (self.field_names.index(name) for name in (self.user, self.item))
        product = vectors[:, first, : self.split] * vectors[:, second, : self.split]
        deep = self.deep(vectors[:, :, self.split :].flatten(1))
        return self.first_order(batch) + self.out(torch.cat([product, deep], dim=1)).squeeze(1)


def _pair(tokens: list[str], user: str | None, item: str | None) -> tuple[str, str]:
    for role, name in (("user", user), ("item", item)):
        if name is not None and name not in tokens:
            raise ValueError(f"{role} must name a field of single tokens, got {name!r}; there are {', '.join(tokens)}")
    user = user or _first(tokens, "user", item)
    item = item or _first(tokens, "item", user)
    if user is None or item is None or user == item:
        have = ", ".join(tokens) or "none"
        raise ValueError(f"NCF needs two fields of single tokens, a user and an item; there are {have}")
    return user, item


def _first(tokens: list[str], word: str, other: str | None) -> str | None:
    """The field that is named for it, or the first one; never the ``other`` or one that is named for that."""
    free = [name for name in tokens if name != other]
    opposite = "item" if word == "user" else "user"
    named = [name for name in free if word in name.lower()]
    neutral = [name for name in free if opposite not in name.lower()]
    return next(iter(named or neutral or free), None)
