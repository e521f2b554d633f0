"""The definition of graphlossy::packed_attention in plain torch, on every device.

A cache of keys and values holds, for every row of a batch and head, some tokens as they are (attention sinks), chunks
of tokens in low bits, and a recent window as it is. The keys of a chunk are rounded per channel and its values per
token (KIVI, Liu et al., ICML 2024, section 3), so with codes c, scales s and offsets o

    q . k_t = sum_d (q_d s_d) c_dt + sum_d q_d o_d          sum_t p_t v_td = sum_t (p_t s_t) c_td + sum_t p_t o_t

and the kernels fold scales and offsets into the query and the weights: no key or value is ever made. They agree with
this definition up to the order of their sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["PackedTokens", "attend", "decode", "slots"]


class PackedTokens(NamedTuple):
    """Keys and values of B rows and H heads as the operator takes them; slots are sinks, packed tokens, the window.

    Attributes:
        keys: codes uint8 [B, H, C, D, bytes], scale and offset bfloat16 [B, H, C, D, groups]: a chunk is [D, G], groups
            of ``key_group`` tokens along G.
        values: codes [B, H, C, G, bytes], scale and offset [B, H, C, G, groups]: a chunk is [G, E], groups of
            ``value_group`` channels along E.
        key_bits, value_bits: width of the codes.
        key_group, value_group: elements of a group, a multiple of 8.
        sinks: keys [B, H, S, D] and values [B, H, S, E] in floating point.
        window: keys [B, H, W, D] and values [B, H, W, E] of the last W tokens in floating point.
        rows: int32 [B, 4], for every row its first real token, its sinks, its packed chunks, and the first token of the
            window that is neither.
    """

    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    key_bits: int
    value_bits: int
    key_group: int
    value_group: int
    sinks: Sequence[Tensor]
    window: Sequence[Tensor]
    rows: Tensor

    @property
    def chunk(self) -> int:
        """Tokens of a chunk."""
        return self.values[0].shape[3]


def decode(parts: Sequence[Tensor], bits: int, group_size: int, width: int) -> Tensor:
    """Float32 chunks [B, H, C, I, width] of codes, scale and offset."""
    flat = (t.reshape(-1, t.shape[-1]) for t in parts)
    return torch.ops.graphlossy.dequantize(*flat, bits, group_size, width, torch.float32).view(
        *parts[0].shape[:4], width
    )


def slots(tokens: PackedTokens) -> tuple[Tensor, Tensor]:
    """(whether a slot holds a token, which token it is) [B, slots]."""
    start, sinks, chunks, first = (column[:, None].to(torch.int64) for column in tokens.rows.T)
    count = tokens.sinks[0].shape[2], tokens.keys[0].shape[2] * tokens.chunk, tokens.window[0].shape[2]
    sink, packed, recent = (torch.arange(n, device=start.device)[None] for n in count)
    end = start + sinks + chunks * tokens.chunk - first  # of the tokens before the window, if none of it is skipped
    valid = torch.cat([sink < sinks, packed < chunks * tokens.chunk, recent >= first], 1)
    place = torch.cat([start + sink, start + sinks + packed, end + recent], 1)
    return valid, place


def attend(
    query: Tensor, tokens: PackedTokens, mask: Tensor | None, scaling: float, softcap: float, sums: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Definition of graphlossy::packed_attention: what packed tokens, and what the others add to the result.

    Args:
        query: [B, H, R, D]: the queries of the heads that share a head of keys, each with Q positions, R = heads * Q.
        tokens: keys and values.
        mask: bool [B, Q, T] of all tokens from the first pad on, False where a query does not see one; None: all seen.
        scaling: factor of the products.
        softcap: c of c tanh(x / c), applied to the products; 0: none.
        sums: whether the third result is wanted.

    Returns:
        (packed, full, sums): float32 [B, H, R, E] sums over packed tokens, and over sinks and the window, of values
        weighted by one softmax over all; where nothing is seen both are zero. The weights of each slot, summed over
        queries: float32 [B, H, slots], or [B, H, 0].
    """
    width, out = query.shape[-1], tokens.sinks[1].shape[-1]
    keys = decode(tokens.keys, tokens.key_bits, tokens.key_group, tokens.chunk).transpose(-1, -2).flatten(2, 3)
    values = decode(tokens.values, tokens.value_bits, tokens.value_group, out).flatten(2, 3)
    k = torch.cat([tokens.sinks[0].float(), keys.view(*keys.shape[:3], width), tokens.window[0].float()], 2)
    v = torch.cat([tokens.sinks[1].float(), values.view(*values.shape[:3], out), tokens.window[1].float()], 2)
    if not k.shape[2]:
        nothing = v.new_zeros((*query.shape[:3], out))
        return nothing, nothing.clone(), v.new_zeros((*query.shape[:2], 0))
    valid, place = slots(tokens)
    seen = valid[:, None, :]  # [B, Q, slots]
    if mask is not None:
        index = place.clamp(0, mask.shape[2] - 1)[:, None].expand(-1, mask.shape[1], -1)
        seen = seen & mask.gather(2, index)
    seen = seen.repeat(1, query.shape[2] // seen.shape[1], 1)[:, None]
    empty = ~valid[:, None, :, None]  # what lies in a slot without a token may be anything
    scores = query.float() @ k.masked_fill(empty, 0).transpose(-1, -2) * scaling
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~seen, -torch.inf)
    largest = scores.amax(-1, keepdim=True)
    weights = torch.exp(scores - largest.masked_fill(largest == -torch.inf, 0))
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    v = v.masked_fill(empty, 0)
    first, last = tokens.sinks[0].shape[2], v.shape[2] - tokens.window[0].shape[2]
    packed = weights[..., first:last] @ v[..., first:last, :]
    full = weights[..., :first] @ v[..., :first, :] + weights[..., last:] @ v[..., last:, :]
    return packed, full, weights.sum(2) if sums else weights.new_zeros((*weights.shape[:2], 0))
