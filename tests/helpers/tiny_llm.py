"""A tokenizer of a few words, and sentences of them."""

from __future__ import annotations

from pathlib import Path

import tokenizers
import torch
import transformers

WORDS = "the cat sat on a mat and saw dog who ran over green hill to find his old red ball near water".split()


def sentences(count: int, seed: int = 0) -> list[str]:
    draw = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(WORDS), (count,), generator=draw).tolist()
    return [" ".join((WORDS * 2)[start : start + 12]) + f" {'.' * (i % 3)}" for i, start in enumerate(starts)]


def save_tokenizer(folder: Path) -> int:
    """A word-level tokenizer of these sentences; its number of tokens."""
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token="<unk>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = ["<pad>", "<unk>", "<end>"]
    model.train_from_iterator(sentences(60), tokenizers.trainers.WordLevelTrainer(special_tokens=special))
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<end>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=model, **names).save_pretrained(folder)
    return model.get_vocab_size()
