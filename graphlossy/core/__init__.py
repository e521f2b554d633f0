"""The shared lossy core: tensors in, tensors out. It knows no graph, no recommender and no language model.

Round (`quantize`, `pack_mask`), sample, project and prune, with the byte budget and the ledger beside them. Each
low-level operator is registered with torch.library in the namespace ``graphlossy``; `kernel_status` says which of them
have a compiled kernel on this machine.
"""

from graphlossy.core import _reference  # noqa: F401  registers graphlossy::quantize and the other operators
from graphlossy.core._status import kernel_status
from graphlossy.core.masks import PackedMask, mask_apply, narrow_index, pack_mask, unpack_mask
from graphlossy.core.quantize import QuantizedTensor, quantize

__all__ = [
    "PackedMask",
    "QuantizedTensor",
    "kernel_status",
    "mask_apply",
    "narrow_index",
    "pack_mask",
    "quantize",
    "unpack_mask",
]
