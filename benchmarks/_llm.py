"""Language models under every way of fine-tuning that the benchmarks compare."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["COMPRESS", "VARIANTS", "LLMRunner", "adapted", "in_child", "load", "parsed"]

# What each variant does; the names are those of the tables.
VARIANTS: dict[str, str] = {
    "plain": "float32, nothing else",
    "bf16": "bfloat16 autocast",
    "checkpointing": "transformers' gradient checkpointing, block by block",
    "save_on_cpu": "torch's save_on_cpu: says something on a GPU only",
    "lora": "LoRA by PEFT, rank 16 on q and v",
    "velora": "the same with VeLoRA's compressed adapter input",
    "exact": "llm.compress(bits=None): computed again, nothing rounded",
    "8-bit": "llm.compress(bits=8)",
    "4-bit": "llm.compress(bits=4), the default",
    "2-bit": "llm.compress(bits=2)",
    "4-bit stored": "llm.compress(bits=4, recompute=False)",
    "wta 0.3": "WTA-CRS as in its paper: linear inputs sampled, all else plain",
    "pps 0.3": "the same, without replacement",
    "wta 0.3 + exact": "WTA-CRS, the rest computed again",
    "pps 0.5 + 4-bit": "sampled, rounded and computed again",
    "lora + 4-bit": "LoRA and llm.compress(bits=4)",
    "bf16 + 4-bit": "bfloat16 autocast and llm.compress(bits=4)",
}
# Arguments of `graphlossy.llm.compress`.
COMPRESS: dict[str, dict[str, Any]] = {
    "exact": {"bits": None},
    "8-bit": {"bits": 8},
    "4-bit": {"bits": 4},
    "2-bit": {"bits": 2},
    "4-bit stored": {"bits": 4, "recompute": False},
    "wta 0.3": {"budget": 0.3, "estimator": "wta", "recompute": False},
    "pps 0.3": {"budget": 0.3, "estimator": "pps", "recompute": False},
    "wta 0.3 + exact": {"budget": 0.3, "estimator": "wta"},
    "pps 0.5 + 4-bit": {"budget": 0.5, "estimator": "pps", "bits": 4},
    "lora + 4-bit": {"bits": 4},
    "bf16 + 4-bit": {"bits": 4},
}


def load(folder: str | None, seed: int) -> nn.Module:
    """A causal language model of a folder in float32; None: a tiny Llama with random weights."""
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    if folder is not None:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    else:
        config = LlamaConfig(
            vocab_size=2000, hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4
        )
        model = LlamaForCausalLM(config)
    model.config.use_cache = False
    return model.train()


def in_child(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    """What ``python -m benchmarks.NAME --child SPEC`` prints in a process of its own, or its last line as ``error``."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--child", json.dumps(spec)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        return {"error": lines[-1] if lines else f"the process ended with status {done.returncode}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def parsed(made: ArgumentParser, argv: list[str] | None, work: Callable[[dict[str, Any]], Any]) -> Namespace | None:
    """The arguments, with ``variants`` as a list; None in a child process, whose work is done and printed.

    Args:
        made: a parser with ``--variants``; gets ``--model`` and ``--child``.
        argv: the command line.
        work: of a child, see :func:`in_child`.
    """
    made.add_argument("--model", metavar="DIR", help="folder of the model (needed but for --tiny)")
    made.add_argument("--child", help="(for the benchmark itself)")
    args = made.parse_args(argv)
    if args.child:
        warnings.filterwarnings("ignore")
        print(json.dumps(work(json.loads(args.child))))
        return None
    if args.model is None and not args.tiny:
        made.error("--model: give the folder of a model; `graphlossy datasets prepare smollm2` makes one")
    args.variants = args.variants.split(",")
    if unknown := [name for name in args.variants if name not in VARIANTS]:
        made.error(f"--variants: {', '.join(unknown)} is none; there are {', '.join(VARIANTS)}")
    return args


def adapted(model: nn.Module, variant: str) -> Any:
    """The model with PEFT's adapters of a ``lora`` variant or of ``velora``; torch's generator draws them."""
    import peft

    more = {"velora_config": peft.VeloraConfig()} if variant == "velora" else {}
    settings = peft.LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"], **more)
    return peft.get_peft_model(model, settings)


class LLMRunner:
    """One model under one variant.

    Args:
        variant: key of :data:`VARIANTS`.
        folder: of the model, see :func:`load`.
        seed: of adapters, rounding and draws.
    """

    def __init__(self, variant: str, folder: str | None, seed: int) -> None:
        self.variant = variant
        self.model: Any = load(folder, seed)
        if "lora" in variant:
            self.model = adapted(self.model, variant)
        if variant == "checkpointing":
            enable = getattr(self.model, "activation_checkpointing_enable", None)
            (enable or self.model.gradient_checkpointing_enable)({"use_reentrant": False})
        self.ledger = None
        self._numbered = False
        if variant in COMPRESS:
            from graphlossy import llm

            options = COMPRESS[variant]
            self.ledger = llm.compress(self.model, seed=seed, **options)
            self._numbered = options.get("estimator") not in (None, "uniform")

    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def loss(self, tokens: Tensor, ids: Tensor) -> Tensor:
        """Next-token loss of ``tokens`` [B, T], samples number ``ids`` [B]."""
        numbers = {"sample_ids": ids} if self._numbered else {}
        with self._surroundings():
            found: Tensor = self.model(input_ids=tokens, labels=tokens, **numbers).loss
        return found

    @contextmanager
    def _surroundings(self) -> Iterator[None]:
        with ExitStack() as stack:
            if self.variant.startswith("bf16"):
                stack.enter_context(torch.autocast("cpu", torch.bfloat16))
            if self.variant == "save_on_cpu":
                stack.enter_context(torch.autograd.graph.save_on_cpu())
            yield

    def held_out(self, blocks: Tensor, batch: int) -> float:
        """Mean loss of blocks [n, T] in evaluation."""
        self.model.eval()
        with torch.no_grad():
            losses = [self.model(input_ids=part, labels=part).loss.item() * len(part) for part in blocks.split(batch)]
        self.model.train()
        return sum(losses) / len(blocks)
