"""Compress the tables of a RecBole model on MovieLens-100K, then train it with RecBole's trainer.

Run it with ``python examples/recsys_recbole.py``; needs ``recbole``, whose wheel ships the data (GroupLens' terms:
research only). RecBole 1.2.1 was written for numpy 1 and older scipy; `older_names` adds what it misses in newer ones.
"""

import contextlib
import itertools
import os
import sys
import tempfile

import numpy as np
import scipy.sparse


def older_names():
    """Names that RecBole uses and numpy 2 and scipy 1.13 dropped."""
    for name, now in {"float_": "float64", "bool8": "bool_", "complex_": "complex128", "unicode_": "str_"}.items():
        if not hasattr(np, name):
            setattr(np, name, getattr(np, now))
    if not hasattr(scipy.sparse.dok_matrix, "_update"):
        scipy.sparse.dok_matrix._update = lambda matrix, entries: matrix._dict.update(entries)


older_names()

from recbole.config import Config  # noqa: E402
from recbole.data import create_dataset, data_preparation  # noqa: E402
from recbole.utils import get_model, get_trainer, init_seed  # noqa: E402

from graphlossy.recsys.compress import compress_embeddings  # noqa: E402

SEQUENTIAL = ("SASRec",)
FILTER = {}  # such as {"user_inter_num_interval": "[200,inf)"} for fewer users
READY = {}  # the data and the configuration of every model that was built


def settings(name, folder):
    """RecBole's configuration of a model on the data that its wheel ships."""
    options = {
        "embedding_size": 16, "hidden_size": 16, "inner_size": 32, "n_heads": 2, "MAX_ITEM_LIST_LENGTH": 10,
        "epochs": 2, "train_batch_size": 4096, "learning_rate": 0.01, "use_gpu": False, "show_progress": False,
        "state": "ERROR",
        "checkpoint_dir": folder, "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
    }  # fmt: skip
    options |= FILTER
    if name in SEQUENTIAL:
        options["train_neg_sample_args"] = None
    arguments, sys.argv = sys.argv, sys.argv[:1]  # Config reads the command line
    try:
        return Config(model=name, dataset="ml-100k", config_dict=options)
    finally:
        sys.argv = arguments


@contextlib.contextmanager
def scratch():
    """RecBole writes logs where it is started."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield folder
        finally:
            os.chdir(before)


def build(name="BPR"):
    """A model and, kept aside, its data."""
    with scratch() as folder:
        if name not in READY:
            config = settings(name, folder)
            READY[name] = config, *data_preparation(config, create_dataset(config))[:2]
        config, train_data, _ = READY[name]
        init_seed(0, True)
        return get_model(name)(config, train_data.dataset)


def batches(model):
    """A few batches of RecBole's training loader, of which one epoch is shuffled anew each time."""
    _, train_data, _ = READY[type(model).__name__]
    return list(itertools.islice(train_data, 8))


def loss_fn(model, batch):
    return model.calculate_loss(batch)


def train(model):
    """RecBole's trainer, which makes the optimizer; its losses by epoch."""
    config, train_data, valid_data = READY[type(model).__name__]
    with scratch():
        trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
        trainer.fit(train_data, valid_data, saved=False, show_progress=False)
        return list(trainer.train_loss_dict.values())


def main():
    for name in ("BPR", "LightGCN", "SASRec"):
        model = build(name)
        # The 10 positions of SASRec are fewer than `min_tokens` and stay.
        report = compress_embeddings(model, batches(model), loss_fn, "pme", budget="1/4")
        print(report)
        print(name, "loss by epoch:", [round(loss, 4) for loss in train(model)])


if __name__ == "__main__":
    main()
