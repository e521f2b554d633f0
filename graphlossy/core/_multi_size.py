"""The definition of graphlossy::rank_lookup and the multi_size operators in plain torch, on every device.

A table of V tokens whose rows have K different widths is K dense tables, and every token is in one of them. Nothing is
stored about where: the row of a token is its rank, the number of tokens before it that are in the same bucket. The
bucket numbers are kept as ceil(log2 K) planes of bits, 64 tokens to a word, beside a directory with the number of
tokens of every bucket before each block of 512 (a rank directory: Jacobson, FOCS 1989). That is about 3.5 bits a token
for 7 widths, where an index to the row would take 32.

The C++ kernels agree with these functions bit for bit, but for the gradient of a projection, whose terms they add in
another order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Buckets", "LANES", "LARGEST_CODES", "NO_BUCKET", "backward", "bag_of", "forward", "lookup", "rank_map",
           "scores", "unpack_codes"]  # fmt: skip

WORD, WORDS = 64, 8  # tokens of a word; words between two entries of the directory
BLOCK = WORD * WORDS
LANES = 16  # partial sums of a dot product
LARGEST_CODES = 255
NO_BUCKET = 255  # of a position that has no gradient
_CHUNK = 1 << 22  # elements at a time


class Buckets(NamedTuple):
    """The tables of every width, as the operators take them.

    Attributes:
        tables: [rows, size] float, or the codes of graphlossy::quantize: [rows, bytes] with groups along each row, or
            [1, bytes] with groups over the whole table.
        scales, offsets: bfloat16 metadata of the codes; empty tensors for floats.
        projections: [rows, dim] float, which rows of a table are multiplied with.
        which: for every table the index of its projection, of which the first ``size`` rows count: narrower tables may
            share a wider one's. -1 is the identity.
        sizes: width of every table, in elements; 0 is a row of zeros.
        group_sizes: elements of a group of codes; 0 for floats.
        bits: width of a code; 0 for floats.
        dim: width of the result.
    """

    tables: Sequence[Tensor]
    scales: Sequence[Tensor]
    offsets: Sequence[Tensor]
    projections: Sequence[Tensor]
    which: Sequence[int]
    sizes: Sequence[int]
    group_sizes: Sequence[int]
    bits: int
    dim: int

    def compute_dtype(self) -> torch.dtype:
        """float64 if a table is, else float32; codes are always decoded to float32."""
        if self.bits:
            return torch.float32
        return torch.float64 if any(t.dtype == torch.float64 for t in self.tables) else torch.float32

    def rows(self, k: int, row: Tensor) -> Tensor:
        """[N, size] rows of table ``k`` in the type that is computed with."""
        if not self.bits:
            return self.tables[k][row].to(self.compute_dtype())
        packed, scale, offset = self.tables[k], self.scales[k], self.offsets[k]
        size, group_size = self.sizes[k], self.group_sizes[k]
        if is_flat(packed):
            element = row.unsqueeze(1) * size + torch.arange(size, device=row.device)
            return _decode(packed[0], scale[0], offset[0], self.bits, group_size, element)
        stored = packed[row], scale[row], offset[row]
        return torch.ops.graphlossy.dequantize(*stored, self.bits, group_size, size, torch.float32)

    def projection(self, k: int) -> Tensor | None:
        """[size, dim] of table ``k`` in the type that is computed with; None is the identity."""
        if self.which[k] < 0:
            return None
        return self.projections[self.which[k]][: self.sizes[k]].to(self.compute_dtype())


def is_flat(packed: Tensor) -> bool:
    """Whether the groups of these codes run over the whole table; for a table of one row that is no difference."""
    return packed.shape[0] == 1


def _decode(packed: Tensor, scale: Tensor, offset: Tensor, bits: int, group_size: int, element: Tensor) -> Tensor:
    """Chosen elements of codes whose groups run over a whole tensor: float32 of the shape of ``element``."""
    group = element // group_size
    p = element - group * group_size
    groups, room = scale.shape[0], packed.shape[0] // bits * 8  # elements, padding included
    length = torch.where(group < groups - 1, group_size, room - (groups - 1) * group_size)
    plane = length * bits // 8
    byte = packed[group * (group_size // 8 * bits) + p % plane].to(torch.int32)
    code = (byte >> (p // plane * bits).to(torch.int32)) & (2**bits - 1)
    return code.to(torch.float32) * scale[group].float() + offset[group].float()


def rank_map(codes: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """(planes, counts) of the bucket numbers ``codes`` [V], below ``num_codes``.

    Returns:
        planes: int64 [ceil(V / 64) * ceil(log2 num_codes)]. A block of 512 tokens is its plane 0, plane 1 and so on,
            each of 8 words (fewer in the last block); bit t of word w of plane b is bit b of codes[64 w + t].
        counts: int32 [ceil(V / 512), num_codes], tokens of each bucket before a block of 512; int64 beyond 2**31.
            Both are empty for a single bucket, where a token's row is its id.
    """
    tokens, bits = codes.shape[0], (num_codes - 1).bit_length()
    if not bits:
        empty = torch.empty(0, dtype=torch.int64, device=codes.device)
        return empty, empty.to(torch.int32).view(0, 0)
    words, blocks = -(-tokens // WORD), -(-tokens // BLOCK)
    planes = torch.empty(words * bits, dtype=torch.int64, device=codes.device)
    counts = torch.zeros((blocks + 1, num_codes), dtype=torch.int64, device=codes.device)
    weight = torch.ones(WORD, dtype=torch.int64, device=codes.device) << torch.arange(WORD, device=codes.device)
    step = _CHUNK // BLOCK * BLOCK
    for start in range(0, tokens, step):
        part = codes[start : start + step].to(torch.int64)
        at = torch.arange(part.shape[0], device=codes.device) // BLOCK + start // BLOCK + 1
        counts.view(-1).index_add_(0, at * num_codes + part, torch.ones_like(part))
        part = torch.nn.functional.pad(part, (0, -part.shape[0] % WORD)).view(-1, 1, WORD)
        shifts = torch.arange(bits, device=codes.device).unsqueeze(1)
        word = (((part >> shifts) & 1) * weight).sum(2)  # [words, bits]; the bits are disjoint
        full = word.shape[0] // WORDS * WORDS
        ordered = [word[:full].view(-1, WORDS, bits).transpose(1, 2).reshape(-1), word[full:].T.reshape(-1)]
        planes[start // WORD * bits : (start // WORD + word.shape[0]) * bits] = torch.cat(ordered)
    counts = counts[:-1].cumsum(0)
    return planes, counts if tokens > 2**31 - 1 else counts.to(torch.int32)


def _place(word: Tensor, plane: int, words: int, bits: int) -> Tensor:
    """Where in the planes a word of plane ``plane`` is."""
    block = word // WORDS
    stride = (words - block * WORDS).clamp(max=WORDS)
    return block * (WORDS * bits) + plane * stride + word % WORDS


def unpack_codes(planes: Tensor, num_tokens: int) -> Tensor:
    """uint8 bucket numbers [V] of all tokens."""
    words = -(-num_tokens // WORD)
    bits = planes.shape[0] // words if words else 0
    codes = torch.zeros((words, WORD), dtype=torch.uint8, device=planes.device)
    shifts = torch.arange(WORD, device=planes.device)
    for start in range(0, words, _CHUNK // WORD):
        word = torch.arange(start, min(start + _CHUNK // WORD, words), device=planes.device)
        for b in range(bits):
            found = planes[_place(word, b, words, bits)].unsqueeze(1)
            codes[start : start + word.shape[0]] |= (((found >> shifts) & 1) << b).to(torch.uint8)
    return codes.view(-1)[:num_tokens]


def _popcount(x: Tensor) -> Tensor:
    """Bits that are set in each int64."""
    x = x - ((x >> 1) & 0x5555555555555555)
    x = (x & 0x3333333333333333) + ((x >> 2) & 0x3333333333333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F0F0F0F0F
    return (x * 0x0101010101010101) >> 56


def lookup(ids: Tensor, planes: Tensor, counts: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
    """(bucket uint8 [N], row int64 [N]) of ids [N] that are all below ``num_tokens``."""
    words = -(-num_tokens // WORD)
    bits = planes.shape[0] // words if words else 0
    if not bits:
        return torch.zeros(ids.shape, dtype=torch.uint8, device=ids.device), ids.clone()
    word, at = ids // WORD, ids % WORD
    code = torch.zeros_like(ids)
    for b in range(bits):
        code |= ((planes[_place(word, b, words, bits)] >> at) & 1) << b
    block = word // WORDS
    row = counts[block, code].to(torch.int64)
    below = (torch.ones_like(at) << at) - 1
    for step in range(WORDS):
        w = (block * WORDS + step).clamp(max=words - 1)
        match = torch.where(block * WORDS + step < word, -1, torch.where(block * WORDS + step == word, below, 0))
        for b in range(bits):
            found = planes[_place(w, b, words, bits)]
            match &= torch.where(((code >> b) & 1).bool(), found, ~found)
        row += _popcount(match)
    return code.to(torch.uint8), row


def _by_bucket(bucket: Tensor, buckets: Buckets) -> Iterator[tuple[int, Tensor]]:
    for k, size in enumerate(buckets.sizes):
        if size:
            yield k, (bucket == k).nonzero().squeeze(1)


def project(rows: Tensor, projection: Tensor | None) -> Tensor:
    """rows [N, size] times projection [size, dim], added in the order of the rows' elements."""
    if projection is None:
        return rows
    out = rows.new_zeros((rows.shape[0], projection.shape[1]))
    for i in range(rows.shape[1]):
        out = out + rows[:, i : i + 1] * projection[i]
    return out


def bag_of(ends: Tensor, count: int) -> Tensor:
    """int64 [count] the bag of every position, from where the bags end."""
    lengths = torch.diff(ends, prepend=ends.new_zeros(1))
    return torch.arange(ends.shape[0], device=ends.device).repeat_interleave(lengths, output_size=count)


def forward(
    bucket: Tensor, row: Tensor, buckets: Buckets, dtype: torch.dtype, ends: Tensor | None, weights: Tensor | None,
    mean: bool,
) -> Tensor:  # fmt: skip
    """[N, dim] rows at their common width; with ``ends`` [B] their sums (means) over bags, weighted: [B, dim]."""
    out = torch.zeros((row.shape[0], buckets.dim), dtype=buckets.compute_dtype(), device=row.device)
    for k, at in _by_bucket(bucket, buckets):
        out[at] = project(buckets.rows(k, row[at]), buckets.projection(k))
    if ends is None:
        return out.to(dtype)
    if weights is not None:
        out = weights.to(out.dtype).unsqueeze(1) * out
    total = out.new_zeros((ends.shape[0], buckets.dim)).index_add_(0, bag_of(ends, row.shape[0]), out)
    if mean:
        count = torch.diff(ends, prepend=ends.new_zeros(1)).clamp(min=1).unsqueeze(1)
        total = total / count
    return total.to(dtype)


def _dot(grad: Tensor, projection: Tensor) -> Tensor:
    """grad [N, dim] times projection^T [dim, size]: lane t adds up columns t, t + 16, ..., then halves are added."""
    pad = -grad.shape[1] % LANES
    grad, projection = (torch.nn.functional.pad(x, (0, pad)) for x in (grad, projection))
    columns = []
    for p in projection:
        product = (grad * p).view(grad.shape[0], grad.shape[1] // LANES, LANES)
        lanes = torch.zeros_like(product[:, 0])
        for block in product.unbind(1):
            lanes = lanes + block
        while lanes.shape[1] > 1:
            half = lanes.shape[1] // 2
            lanes = lanes[:, :half] + lanes[:, half:]
        columns.append(lanes)
    return torch.cat(columns, dim=1)


def backward(
    grad: Tensor, bucket: Tensor, row: Tensor, buckets: Buckets, bag: Tensor | None, weights: Tensor | None,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of the rows that were looked up and of the projections.

    Returns:
        (order, counts, values, sums): int64 positions by bucket, those of bucket `NO_BUCKET` or of size 0 left out;
        int64 [K] how many each bucket has; the gradient of each one's row, flat, bucket after bucket; the gradients of
        the ``wanted`` projections, flat.
    """
    order, counts, values, dtype = [], [], [], buckets.compute_dtype()
    sums = [
        p.new_zeros(p.shape if want else (0,), dtype=dtype) for p, want in zip(buckets.projections, wanted, strict=True)
    ]
    for k, size in enumerate(buckets.sizes):
        at = (bucket == k).nonzero().squeeze(1) if size else bucket.new_empty(0, dtype=torch.int64)
        counts.append(at.shape[0])
        order.append(at)
        g = grad[at if bag is None else bag[at]].to(dtype)
        if weights is not None:
            g = weights[at].to(dtype).unsqueeze(1) * g
        projection = buckets.projection(k)
        values.append((g if projection is None or not size else _dot(g, projection)).reshape(-1)[: at.shape[0] * size])
        if projection is not None and wanted[buckets.which[k]]:
            sums[buckets.which[k]][:size] += buckets.rows(k, row[at]).T @ g
    total = torch.tensor(counts, dtype=torch.int64, device=grad.device)
    empty = grad.new_empty(0, dtype=dtype)
    return torch.cat(order), total, torch.cat([*values, empty]), torch.cat([*(m.view(-1) for m in sums), empty])


def scores(planes: Tensor, num_tokens: int, buckets: Buckets, queries: Sequence[Tensor]) -> Tensor:
    """[B, V] products of every token's row with the queries [size, B] that were projected to its width."""
    batch = queries[0].shape[1]
    out = torch.zeros((batch, num_tokens), dtype=buckets.compute_dtype(), device=planes.device)
    codes = unpack_codes(planes, num_tokens)
    for k, tokens in _by_bucket(codes, buckets):
        rows = buckets.rows(k, torch.arange(tokens.shape[0], device=tokens.device))
        out[:, tokens] = project(rows, queries[k].to(rows.dtype)).T
    return out
