"""What may carry out a torch call of a compressed pass in another way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from graphlossy._compress._session import Session

__all__ = ["Interceptor", "RowSampler"]


class Interceptor:
    """Interface; one object for each forward pass."""

    def replace(self, session: Session, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of the call, carried out in another way; None: torch is to do it."""
        return None

    def made(self, op: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """The call returned ``out``."""

    def end(self) -> None:
        """The forward pass is over; nothing of it may be held any more."""


class RowSampler(Protocol):
    """Keeps a sample of the rows of linear layers' inputs; lives as long as a model's switch."""

    def check_ids(self, ids: Any) -> None:
        """Raises ValueError or TypeError where the numbers of a batch's samples are missing or of the wrong kind."""

    def begin_pass(self, ids: Tensor | None) -> Interceptor:
        """What carries out the linear layers of the next pass, over the samples ``ids`` [B]."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from :meth:`state_dict`."""
