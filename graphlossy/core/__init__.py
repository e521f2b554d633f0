"""The shared lossy core: tensors in, tensors out. It knows no graph, no recommender and no language model.

Round (`quantize`, `pack_mask`), sample, project and prune, with the byte budget and the ledger beside them. Each
low-level operator is registered with torch.library in the namespace ``graphlossy``; `kernel_status` says which of them
have a compiled kernel on this machine.
"""

from graphlossy.core import _cpu, _cuda, _reference  # noqa: F401  registers graphlossy::quantize and the others
from graphlossy.core._status import kernel_status
from graphlossy.core.budget import allocate_bits, allocate_bits_exact, format_bytes, parse_bytes
from graphlossy.core.masks import PackedMask, mask_apply, narrow_index, pack_mask, unpack_mask
from graphlossy.core.neighbors import relabel, sample_neighbors
from graphlossy.core.projection import ProjectedTensor, random_projection
from graphlossy.core.quantize import QuantizedTensor, quantize
from graphlossy.core.saliency import SaliencyAccumulator, prune_to_budget, saliency_scores
from graphlossy.core.sampling import RowSample, sample_rows, sampled_matmul, weighted_sample

__all__ = [
    "PackedMask",
    "ProjectedTensor",
    "QuantizedTensor",
    "RowSample",
    "SaliencyAccumulator",
    "allocate_bits",
    "allocate_bits_exact",
    "format_bytes",
    "kernel_status",
    "mask_apply",
    "narrow_index",
    "pack_mask",
    "parse_bytes",
    "prune_to_budget",
    "quantize",
    "random_projection",
    "relabel",
    "saliency_scores",
    "sample_neighbors",
    "sample_rows",
    "sampled_matmul",
    "unpack_mask",
    "weighted_sample",
]
