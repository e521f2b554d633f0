"""Compress the tables of a FuxiCTR model, then train it with the model's own steps.

Run it with ``python examples/recsys_fuxictr.py``; needs ``fuxictr``. The wheel holds the layers; models such as this
one are in the project's model zoo.
"""

import tempfile
from collections import OrderedDict

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import FactorizationMachine, FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel

from graphlossy.recsys.compress import compress_embeddings

USERS, ITEMS, LENGTH = 1000, 2000, 5


class DeepFM(BaseModel):
    """A factorization machine and a perceptron on the same embeddings."""

    def __init__(self, feature_map, embedding_dim=16, learning_rate=0.01, **options):
        super().__init__(feature_map, model_id="DeepFM", **options)
        self.embedding_layer = FeatureEmbedding(feature_map, embedding_dim, "partial(nn.init.normal_, std=0.1)")
        self.fm = FactorizationMachine(feature_map)
        self.mlp = MLP_Block(input_dim=feature_map.sum_emb_out_dim(), output_dim=1, hidden_units=[32])
        self.compile("adam", "binary_cross_entropy", learning_rate)
        self.reset_parameters()

    def forward(self, inputs):
        features = self.get_inputs(inputs)
        embedded = self.embedding_layer(features)
        logit = self.fm(features, embedded) + self.mlp(embedded.flatten(start_dim=1))
        return {"y_pred": self.output_activation(logit)}


def feature_map():
    """Items and the history of items share a table; id 0 is padding."""
    found = FeatureMap("clicks", "")
    found.features = OrderedDict(
        user={"source": "", "type": "categorical", "vocab_size": USERS},
        item={"source": "", "type": "categorical", "vocab_size": ITEMS, "padding_idx": 0},
        history={
            "source": "", "type": "sequence", "vocab_size": ITEMS, "padding_idx": 0, "max_len": LENGTH,
            "share_embedding": "item", "feature_encoder": "layers.MaskedAveragePooling()",
        },
    )  # fmt: skip
    found.labels, found.default_emb_dim = ["label"], 16
    found.num_fields = found.get_num_fields()
    found.set_column_index()
    return found


def clicks(rows=4000):
    """Synthetic clicks: popular ids are small, and odd users and items are clicked more."""
    draw = torch.Generator().manual_seed(0)
    user = (torch.rand(rows, generator=draw) ** 3 * USERS).long()
    item = (torch.rand(rows, generator=draw) ** 3 * (ITEMS - 1)).long() + 1
    history = (torch.rand((rows, LENGTH), generator=draw) ** 3 * ITEMS).long()
    label = ((user % 2 + item % 2) > torch.rand(rows, generator=draw)).float()
    return {"user": user, "item": item, "history": history, "label": label}


def build():
    with tempfile.TemporaryDirectory() as folder:  # where the framework puts its checkpoints
        options = {"model_root": folder, "metrics": ["AUC"], "verbose": 0, "embedding_regularizer": 1e-6}
        return DeepFM(feature_map(), task="binary_classification", **options)


def batches(model, size=500):
    data = {name: values.split(size) for name, values in clicks().items()}
    return [{name: parts[k] for name, parts in data.items()} for k in range(len(data["label"]))]


def loss_fn(model, batch):
    return model.compute_loss(model(batch), model.get_labels(batch))


def train(model, epochs=4):
    """The framework's own training step, with its optimizer, penalty and clipping."""
    model._max_gradient_norm = 10.0
    losses = []
    for _ in range(epochs):
        model.train()
        found = [model.train_step(batch).item() for batch in batches(model, 250)]
        losses.append(sum(found) / len(found))
    return losses


def main():
    model = build()
    # The optimizer that the constructor made is an attribute of the model: its parameters are replaced as well.
    print(compress_embeddings(model, batches(model), loss_fn, "pme", budget="1/8", match="embedding_layer.*"))
    print("loss by epoch:", [round(loss, 4) for loss in train(model)])


if __name__ == "__main__":
    main()
