"""A packed layer of keys and values: what it stores follows from the tokens alone, however they came and went."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from graphlossy.core.quantize import quantize
from graphlossy.core.symmetric import offset_of, quantize_symmetric

pytest.importorskip("transformers")
kv = importlib.import_module("graphlossy.llm.kv._kivi_layer")
KIVILayer, Split, rotate = kv.KIVILayer, kv.Split, kv.rotate
HEADS, WIDTH, CHUNK = 2, 16, 8


def layer(
    padding: list[int], bits: int = 4, sinks: int = 3, window: int = 8, rotated: bool = False, rollback: int = 16
) -> Any:
    made = KIVILayer(bits, bits, 8, Split(sinks, window, CHUNK, rollback), rotated)
    made.padding = list(padding)
    return made


def tokens(rows: int, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(rows, HEADS, count, WIDTH, generator=draw) for _ in range(2))


def fed(keys: Tensor, values: Tensor, padding: list[int], **options) -> Any:
    made = layer(padding, **options)
    made.update(keys, values)
    return made


def same_storage(a: Any, b: Any) -> None:
    """Equal values, whether in floats or in codes; pads do not count."""
    assert a.seen == b.seen and a.padding == b.padding and a.packed == b.packed
    for x, y in zip(a.states(), b.states(), strict=True):
        for row, pads in enumerate(a.padding):
            assert torch.equal(x[row, :, pads:], y[row, :, pads:])


def by_hand(keys: Tensor, values: Tensor, split: Any, bits: int, rotated: bool = False) -> tuple[Tensor, Tensor]:
    """KIVI's definition for one row without pads [1, H, T, D]."""
    keys, values = keys.clone(), values.clone()
    for n in range(split.chunks(keys.shape[2])):
        here = slice(split.sinks + n * split.chunk, split.sinks + (n + 1) * split.chunk)
        keys[:, :, here] = quantize(keys[:, :, here].contiguous(), bits, split.chunk, "nearest", -2).dequantize()
        chunk = values[:, :, here].contiguous()
        if rotated and bits < 4:
            codes, scale = quantize_symmetric(rotate(chunk), bits, 8)
            stored = (t.flatten(0, -2) for t in (codes, scale, offset_of(scale, bits)))
            back = torch.ops.graphlossy.dequantize(*stored, bits, 8, WIDTH, torch.float32).view_as(chunk)
        else:
            back = quantize(rotate(chunk) if rotated else chunk, bits, 8, "nearest", -1).dequantize()
        values[:, :, here] = rotate(back) if rotated else back
    return keys, values


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 10, 11, 18, 19, 20, 26, 27, 28, 100])
def test_what_is_packed(count: int, bits: int) -> None:
    keys, values = tokens(1, count)
    for rotated in (False, True):
        made = fed(keys, values, [0], bits=bits, rotated=rotated)
        for found, wanted in zip(made.states(), by_hand(keys, values, made.split, bits, rotated), strict=True):
            assert torch.equal(found, wanted)


@settings(max_examples=200)
@given(st.data())
def test_it_matters_not_in_which_pieces_tokens_come_and_go(data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, 3), "rows")
    padding = data.draw(st.lists(st.integers(0, 12), min_size=rows, max_size=rows), "padding")
    rollback = data.draw(st.sampled_from([0, 3, 16, 20]), "rollback")
    options = {"sinks": data.draw(st.integers(0, 5)), "window": data.draw(st.integers(0, 17)), "bits": 2}
    options |= {"rollback": rollback, "rotated": data.draw(st.booleans(), "rotated")}
    keys, values = tokens(rows, 400)
    made, order, seen, highest, fresh = layer(padding, **options), list(range(rows)), 0, 0, 0
    for _ in range(data.draw(st.integers(1, 8), "steps")):
        what = data.draw(st.sampled_from(["append", "append", "crop", "reorder", "select", "repeat"]), "what")
        if what == "append":
            new = data.draw(st.integers(1, 40), "new")
            k, v = (t[order, :, seen : seen + new] for t in (keys, values))
            out = made.update(k, v)
            seen += new
            highest = max(highest, seen)
            for row, pads in enumerate(made.padding):
                first = max(pads, seen - new)
                for a, b in zip(out, (k, v), strict=True):
                    assert a.shape[2] == seen and torch.equal(a[row, :, first:], b[row, :, first - seen + new :])
        elif seen == 0:
            continue
        elif what == "crop":
            most = rollback - (highest - seen)
            gone = data.draw(st.integers(0, max(0, min(seen, most))), "gone")
            made.crop(-gone)
            seen -= gone
        elif what == "repeat" and len(order) < 5:
            made.batch_repeat_interleave(2)
            order = [row for row in order for _ in range(2)]
        else:
            picked = data.draw(st.lists(st.integers(0, len(order) - 1), min_size=1, max_size=4), "picked")
            (made.reorder_cache if what == "reorder" else made.batch_select_indices)(torch.tensor(picked))
            order = [order[i] for i in picked]
        assert made.get_seq_length() == seen
    if seen:
        fresh = fed(keys[order, :, :seen], values[order, :, :seen], [padding[row] for row in order], **options)
        same_storage(made, fresh)


@pytest.mark.parametrize("padding", [[0, 5], [7, 7], [0, 1, 30], [50, 0]])
def test_a_padded_row_is_stored_as_it_would_be_alone(padding: list[int]) -> None:
    keys, values = tokens(len(padding), 47)
    for made in (fed(keys, values, padding), layer(padding)):
        if not made.seen:
            for part in range(0, 47, 5):
                made.update(keys[:, :, part : part + 5], values[:, :, part : part + 5])
        found = made.states()
        for row, pads in enumerate(padding):
            alone = fed(keys[row : row + 1, :, pads:], values[row : row + 1, :, pads:], [0])
            for a, b in zip(found, alone.states(), strict=True):
                assert torch.equal(a[row : row + 1, :, pads:], b)


def test_a_large_rollback_gives_rounded_tokens_back() -> None:
    keys, values = tokens(2, 100)
    made = fed(keys, values, [0, 3], bits=8)
    made.crop(-60)
    assert made.get_seq_length() == 40
    for found, wanted in zip(made.states(), (keys, values), strict=True):
        assert torch.allclose(found[0], wanted[0, :, :40], atol=0.03)
        assert torch.allclose(found[1, :, 3:], wanted[1, :, 3:40], atol=0.03)
    made.update(keys[:, :, 40:], values[:, :, 40:])
    same = fed(keys, values, [0, 3], bits=8)
    for found, wanted in zip(made.states(), same.states(), strict=True):
        assert torch.allclose(found[0], wanted[0], atol=0.03)
    made.crop(-100)
    assert made.get_seq_length() == 0 and made.padding == []  # another text may follow
    made.padding = [0, 3]
    made.update(keys, values)
    same_storage(made, same)


@pytest.mark.parametrize("bits", [2, 4])
def test_rotated_values_lose_less_between_channels_that_are_large(bits: int) -> None:
    keys, values = tokens(1, 300)
    values[..., ::4] *= 30  # two of every group
    others = torch.arange(WIDTH) % 4 != 0
    errors = [
        float((fed(keys, values, [0], bits=bits, rotated=rotated).states()[1] - values)[..., others].norm())
        for rotated in (False, True)
    ]
    assert 0 < errors[1] < 0.8 * errors[0]
    assert fed(keys, values, [0], bits=8, rotated=True).states()[1].allclose(values, atol=0.5)


def test_bytes_are_those_of_the_storages() -> None:
    keys, values = tokens(2, 500)
    made = fed(keys, values, [0, 0], bits=2)
    kinds = made.bytes_by_kind()
    packed = made.split.chunks(500)
    assert packed == 61 and kinds["sinks"] == 2 * 2 * HEADS * 3 * WIDTH * 4
    numbers = 2 * 2 * HEADS * WIDTH * CHUNK * packed  # keys and values of two rows
    assert numbers // 4 <= kinds["packed"] < 1.07 * numbers // 4
    assert kinds["metadata"] == 2 * kinds["packed"]  # 4 bytes for 8 numbers of 2 bits
    assert kinds["window"] == 2 * 2 * HEADS * WIDTH * 4 * (500 - 3 - CHUNK * (packed - 2))  # 16 may be taken back
    assert made.nbytes == sum(kinds.values()) and made.plain_bytes == 2 * 2 * HEADS * WIDTH * 500 * 4
    rotated = fed(keys, values, [0, 0], bits=2, rotated=True).bytes_by_kind()
    assert rotated == {**kinds, "metadata": kinds["metadata"] * 3 // 4}  # values have a scale and no offset


def test_the_last_chunk_is_kept_until_it_cannot_come_back() -> None:
    keys, values = tokens(1, 60)
    made = layer([0], sinks=2, window=8, rollback=5)
    held = []
    for at in range(34):
        made.update(keys[:, :, at : at + 1], values[:, :, at : at + 1])
        held.append(made.recent_keys.shape[2])
    # packed at 18 and 26 tokens, and let go 5 tokens later
    assert held[16:31] == [15, 16, 17, 18, 19, 20, 13, 14, 15, 16, 17, 18, 19, 20, 13]


@pytest.mark.parametrize("chunk", [8, 32])
def test_a_draft_of_assisted_decoding_is_taken_back_without_a_trace(chunk: int) -> None:
    keys, values = tokens(2, 200)

    def read(*ends: int) -> Any:
        made, start = KIVILayer(2, 2, 8, Split(3, 8, chunk)), 0
        made.padding = [0, 5]
        for end in ends:
            made.update(keys[:, :, start:end], values[:, :, start:end])
            start = end
        return made

    for first in range(60, 60 + chunk, 3):
        made = read(first)
        made.activate_past_recording()
        made.update(keys[:, :, first : first + 33], values[:, :, first : first + 33])
        made.crop(-32)
        same_storage(made, read(first + 1))
        made.update(keys[:, :, first + 1 :], values[:, :, first + 1 :])
        same_storage(made, read(200))


def test_another_batch_or_model_is_refused() -> None:
    made = fed(*tokens(2, 10), [0, 0])
    with pytest.raises(ValueError, match="holds 2 rows of 2 heads of 16, and was given keys of 3 rows"):
        made.update(*tokens(3, 1))
    with pytest.raises(ValueError, match="0 to -10, got -11"):
        made.crop(-11)
    with pytest.raises(ValueError, match="got 2"):
        made.crop(2)
    with pytest.raises(ValueError, match="cannot be offloaded"):
        made.offload()
    made.reset()
    made.update(*tokens(3, 1))
    assert made.get_seq_length() == 1


@pytest.mark.parametrize(("padding", "first"), [([0, 0], 2), ([0, 5], 36), ([0, 0], 50)])
def test_a_prefix_may_be_read_under_inference_mode(padding: list[int], first: int) -> None:
    keys, values = tokens(2, 90)
    made = layer(padding)
    with torch.inference_mode():
        made.update(keys[:, :, :first], values[:, :, :first])
    for at in range(first, 90, 7):
        made.update(keys[:, :, at : at + 7], values[:, :, at : at + 7])
    same_storage(made, fed(keys, values, padding))


def test_no_gradient_passes_and_no_graph_is_kept() -> None:
    keys, values = (t.requires_grad_() for t in tokens(1, 30))
    found = layer([0]).update(keys * 1, values * 1)
    assert not any(t.requires_grad for t in found)
