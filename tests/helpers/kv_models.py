"""Tiny models of every family, and what is generated with a cache."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor

from graphlossy.llm import KIVICache

WORDS = 96
COMMON = {"vocab_size": WORDS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
SIZES = {
    **COMMON, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 1024,
}  # fmt: skip
FAMILIES: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "qwen2": lambda: transformers.Qwen2Config(**SIZES),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES, head_dim=16),
    "mistral": lambda: transformers.MistralConfig(**SIZES, sliding_window=None),
    "gemma2": lambda: transformers.Gemma2Config(**SIZES, head_dim=16, sliding_window=24),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **SIZES, head_dim=16, sliding_window=24, layer_types=["sliding_attention", "full_attention"]
    ),
    "gpt2": lambda: transformers.GPT2Config(**COMMON, n_embd=64, n_layer=2, n_head=4, n_positions=1024),
    "deepseek_v3": lambda: transformers.DeepseekV3Config(  # a latent is cached instead of keys and values
        **{**SIZES, "num_key_value_heads": 4},
        q_lora_rank=16,
        kv_lora_rank=24,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=16,
        first_k_dense_replace=2,
    ),
    "phi": lambda: transformers.PhiConfig(**{**SIZES, "num_key_value_heads": 4}),
}

HYBRID = "qwen3_next"  # its first layer keeps states instead of keys and values, so its caches cannot be saved


def config_of(family: str) -> Any:
    if family != HYBRID:
        return FAMILIES[family]()
    return transformers.Qwen3NextConfig(
        **SIZES, head_dim=16, linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=8,
        linear_value_head_dim=8, mlp_only_layers=[0, 1], layer_types=["linear_attention", "full_attention"],
    )  # fmt: skip


def model_of(family: str) -> Any:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config_of(family)).eval()
    for parameter in model.parameters():  # far from uniform, so that words differ clearly
        if parameter.dim() == 2:
            parameter.data.mul_(3)
    model.generation_config.eos_token_id = None
    return model


def small(config: Any, bits: int = 8, **options: Any) -> Any:
    """A cache that packs early."""
    return KIVICache(config, bits, **{"group_size": 8, "residual_length": 8, "sinks": 2, **options})


def prompt(rows: int, count: int) -> Tensor:
    return torch.randint(3, WORDS, (rows, count), generator=torch.Generator().manual_seed(1))


def generate(model: Any, cache: Any, ids: Tensor, new: int = 24, **options: Any) -> Any:
    options = {"do_sample": False, "max_new_tokens": new, "output_logits": True, "return_dict_in_generate": True,
               "attention_mask": torch.ones_like(ids), **options}  # fmt: skip
    return model.generate(ids, past_key_values=cache, **options)


def close(plain: Any, packed: Any, within: float = 0.05) -> None:
    """Equal words as long as the plain model does not waver, and logits within a share of their spread."""
    for step, (a, b) in enumerate(zip(plain.logits, packed.logits, strict=True)):
        rows = (
            plain.sequences[:, : -len(plain.logits) + step] == packed.sequences[:, : -len(plain.logits) + step]
        ).all(1)
        assert rows.any()
        assert float((a - b)[rows].abs().max()) < within * float(a[rows].std()), step
