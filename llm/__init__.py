"""Language-model fine-tuning and serving with lossy state.

>>> import torch
>>> from graphlossy import llm
>>> model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 64))
>>> ledger = llm.compress(model)  # or a model of transformers, with adapters of PEFT or without
>>> model(torch.randn(512, 64)).square().mean().backward()
>>> ledger.plain_bytes > 7 * ledger.saved_bytes
True
"""

if __name__ != "graphlossy.llm":
    from graphlossy._checkout import hand_over

    hand_over(__name__, __file__)
else:
    import importlib
    from typing import Any

    from graphlossy.llm._batches import SampleIds, with_sample_ids
    from graphlossy.llm._norms import NormCache
    from graphlossy.llm._switch import compress, load_state, restore, state

    __all__ = [
        "EvictionCache",
        "H2OCache",
        "KIVICache",
        "LossyCallback",
        "NormCache",
        "SampleIds",
        "compress",
        "load_state",
        "plan_cache",
        "restore",
        "state",
        "with_sample_ids",
    ]

    _NEED_TRANSFORMERS = {
        "EvictionCache": "graphlossy.llm.kv",
        "H2OCache": "graphlossy.llm.kv",
        "KIVICache": "graphlossy.llm.kv",
        "LossyCallback": "graphlossy.llm._callback",
        "plan_cache": "graphlossy.llm.kv",
    }

    def __getattr__(name: str) -> Any:
        home = _NEED_TRANSFORMERS.get(name)  # which takes seconds to import
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            return getattr(importlib.import_module(home), name)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.startswith("graphlossy"):
                raise
            raise ModuleNotFoundError(
                f"{name} needs the package {error.name}: pip install 'graphlossy[llm]'", name=error.name
            ) from error
