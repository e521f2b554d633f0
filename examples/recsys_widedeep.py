"""Compress the tables of a pytorch-widedeep model, then train it with the framework's ``Trainer``.

Run it with ``python examples/recsys_widedeep.py``; needs ``pytorch-widedeep``.
"""

import numpy as np
import pandas as pd
import torch
from pytorch_widedeep.models import TabMlp, Wide, WideDeep
from pytorch_widedeep.preprocessing import TabPreprocessor, WidePreprocessor
from pytorch_widedeep.training import Trainer

from graphlossy.recsys.compress import compress_embeddings

USERS, ITEMS = 1000, 2000


def clicks(rows=4000):
    """Synthetic clicks: popular ids are small, and odd users and items are clicked more."""
    rng = np.random.default_rng(0)
    user, item = (rng.random(rows) ** 3 * USERS).astype(int), (rng.random(rows) ** 3 * ITEMS).astype(int)
    label = ((user % 2 + item % 2) > rng.random(rows)).astype("float32")
    return pd.DataFrame({"user": user, "item": item}), label


def inputs():
    """(wide ids, tabular ids, preprocessors) as the framework encodes them."""
    frame, _ = clicks()
    wide, tab = WidePreprocessor(["user", "item"]), TabPreprocessor([("user", 16), ("item", 16)], verbose=0)
    return wide.fit_transform(frame), tab.fit_transform(frame), wide, tab


def build():
    _, _, wide, tab = inputs()
    linear = Wide(int(wide.wide_dim), pred_dim=1)
    deep = TabMlp(tab.column_idx, cat_embed_input=tab.cat_embed_input, mlp_hidden_dims=[32, 16])
    return WideDeep(linear, deeptabular=deep)


def batches(model, size=500):
    x_wide, x_tab, _, _ = inputs()
    parts = (torch.from_numpy(np.array(values)).split(size) for values in (x_wide, x_tab, clicks()[1]))
    return [({"wide": w, "deeptabular": t}, y) for w, t, y in zip(*parts, strict=True)]


def loss_fn(model, batch):
    return torch.nn.functional.binary_cross_entropy_with_logits(model(batch[0]).squeeze(1), batch[1])


def train(model, epochs=4):
    """The framework's own trainer, which makes the optimizer."""
    x_wide, x_tab, _, _ = inputs()
    trainer = Trainer(
        model, "binary", optimizers=torch.optim.Adam(model.parameters(), lr=0.01), verbose=0, num_workers=0
    )
    trainer.fit(X_wide=x_wide, X_tab=x_tab, target=clicks()[1], n_epochs=epochs, batch_size=250)
    return trainer.history["train_loss"]


def main():
    model = build()
    # The table of the wide part has width 1 and stays; before `Trainer`.
    report = compress_embeddings(model, batches(model), loss_fn, "pme", budget="1/8", match="deeptabular.*")
    print(report)
    print("loss by epoch:", [round(loss, 4) for loss in train(model)])


if __name__ == "__main__":
    main()
