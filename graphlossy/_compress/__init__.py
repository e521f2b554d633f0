"""``graphlossy.compress``: train the same model with the same weights in a fraction of the saved bytes."""

from graphlossy._compress._api import compress, load_switch_state, restore, switch_state
from graphlossy.core.ledger import Ledger

__all__ = ["Ledger", "compress", "load_switch_state", "restore", "switch_state"]
