"""A recommender from a table of clicks to a small model that serves: import, train, compress, export, serve.

``python examples/recommender_pipeline.py`` makes up a table and goes through all steps in half a minute. Your own:
``python examples/recommender_pipeline.py --data clicks.csv --schema clicks.json --out shop``, and afterwards, in
another process or on another machine, ``python examples/recommender_pipeline.py --serve shop --rows new.csv``.
"""

import argparse
import csv
import json
import sys
import tempfile
from pathlib import Path

import torch

from graphlossy.recsys.compress import compress_embeddings, finish
from graphlossy.recsys.data import Encoder, load
from graphlossy.recsys.export import exportable, load_tables, save_tables
from graphlossy.recsys.models import make_model
from graphlossy.recsys.train import FitConfig, evaluate, fit, loss_fn, table_bytes, tables_of

SCHEMA = {
    "label": "clicked",
    "time": "time",
    "columns": {
        "user": "token",
        "item": "token",
        "tags": "token_seq",
        "price": {"kind": "float", "transform": "log_standard"},
    },
}
MODEL = {"name": "deepfm", "embedding_dim": 16, "hidden": [64, 32], "dropout": 0.2}


def make_clicks(path, rows=60_000, users=800, items=400, seed=0):
    """Writes a made-up table: few items are popular, users and items have tastes, dear items are clicked less."""
    draw = torch.Generator().manual_seed(seed)
    tags = ["new", "sale", "red", "blue", "kids", "sport"]
    user = (users * torch.rand(rows, generator=draw) ** 2).long()
    item = (items * torch.rand(rows, generator=draw) ** 3).long()
    price = torch.rand(items, generator=draw) * 4
    tagged = torch.rand(items, len(tags), generator=draw) < 0.3
    taste, style = torch.randn(users, 4, generator=draw), torch.randn(items, 4, generator=draw)
    logit = 1.5 * (taste[user] * style[item]).sum(1) + tagged[item, 1] - 0.5 * price[item]
    clicked = torch.rand(rows, generator=draw) < torch.sigmoid(logit)
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["time", "user", "item", "tags", "price", "clicked"])
        for i in range(rows):
            words = " ".join(tag for tag, has in zip(tags, tagged[item[i]].tolist(), strict=True) if has)
            cost = f"{price[item[i]].exp():.2f}"
            table.writerow([i, f"u{user[i]}", f"i{item[i]}", words, cost, int(clicked[i])])


def new_model(fields):
    options = {name: value for name, value in MODEL.items() if name not in ("name", "embedding_dim")}
    return make_model(MODEL["name"], fields, MODEL["embedding_dim"], **options)


def build(args, folder):
    """Import, train, compress and export; the folder then holds all that serving needs."""
    # 1. Import: the table is streamed, tokens become ids, rare and unseen ones id 0.
    data = load(args.data, schema=args.schema or SCHEMA, split="time")
    print(data)

    # 2. Train the full model, to compare with.
    config = FitConfig(epochs=args.epochs, batch_size=1024, lr=5e-3)
    torch.manual_seed(0)
    full = new_model(data.fields)
    fit(full, data, config)
    report("full", full, data)

    # 3. Compress: PME finds a size for every token before training; rows become 4 bits after it.
    torch.manual_seed(0)
    model = new_model(data.fields)
    batches = list(data.train.batches(1024, shuffle=True))
    found = compress_embeddings(
        model, batches, loss_fn, method=args.method, budget=args.budget, bits=4, min_tokens=0, seed=0, progress=False
    )
    found.plan.save(folder / "plan.safetensors")
    fit(model, data, config)
    finish(model)
    report(f"{args.method}+int4", model, data)

    # 4. Export: tables with their maps, the encoder, the dense layers, and a graph of plain torch operators.
    file = save_tables(model, folder / "tables.safetensors")
    data.encoder.save(folder / "encoder.safetensors")
    paths = tuple(f"{path}." for path in tables_of(model))
    rest = {name: value for name, value in model.state_dict().items() if not name.startswith(paths)}
    torch.save(rest, folder / "layers.pt")
    batch = next(iter(data.test.batches(4)))
    inputs = {name: value for name, value in batch.items() if name != "label"}
    rows = torch.export.Dim("rows", min=1)
    shapes = {"batch": {name: {0: rows} for name in inputs}}
    program = torch.export.export(exportable(model), (), {"batch": inputs}, dynamic_shapes=shapes)
    torch.export.save(program, folder / "model.pt2")
    print(f"exported: tables.safetensors of {file.nbytes:,} bytes, encoder, layers and model.pt2 in {folder}")


def report(name, model, data):
    found = evaluate(model, data.test)
    size = table_bytes(tables_of(model).values())
    print(f"{name:>12}: tables of {size:,} bytes, test AUC {found['auc']:.4f}, logloss {found['logloss']:.4f}")


def serve(folder, rows):
    """Probabilities of raw rows, from the files alone."""
    encoder = Encoder.load(folder / "encoder.safetensors")
    model = new_model(encoder.fields)
    for path, table in load_tables(folder / "tables.safetensors").items():
        model.set_submodule(path, table)
    model.load_state_dict(torch.load(folder / "layers.pt", weights_only=True), strict=False)
    model.eval()
    batch = encoder.encode(rows)
    with torch.no_grad():
        found = torch.sigmoid(model(batch))
        program = torch.export.load(folder / "model.pt2").module()
        same = torch.allclose(torch.sigmoid(program(batch=batch)), found, atol=1e-5)
    print(f"served from {folder}; the exported graph says {'the same' if same else 'SOMETHING ELSE'}")
    return found


def read_rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise ValueError(f"{path}: has no rows")
    return {name: [row[name] for row in rows] for name in rows[0]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="CSV, TSV or parquet; default: a made-up table")
    parser.add_argument("--schema", help="JSON file that says what its columns are")
    parser.add_argument("--method", default="pme", help="pme, frequency, uniform, hash, ...")
    parser.add_argument("--budget", default="1/8", help="bytes of all tables, or a share of the full ones")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--out", type=Path, help="folder of the exported files")
    parser.add_argument("--serve", type=Path, metavar="FOLDER", help="only serve, from such a folder")
    parser.add_argument("--rows", help="CSV of the rows to serve")
    args = parser.parse_args()
    if args.serve is None:
        folder = args.out or Path(tempfile.mkdtemp(prefix="recommender-"))
        folder.mkdir(parents=True, exist_ok=True)
        if args.data is None:
            args.data = folder / "clicks.csv"
            make_clicks(args.data)
            print(f"made up {args.data}: synthetic, its figures say nothing of real clicks")
        build(args, folder)
        args.serve = folder
    if args.rows is not None:
        rows = read_rows(args.rows)
    else:  # a user, and a user and an item that no training row had
        rows = {"user": ["u1", "nobody"], "item": ["i3", "i-new"], "tags": ["sale red", ""], "price": [3.5, 20.0]}
        print("rows:", json.dumps(rows))
    for number, probability in enumerate(serve(args.serve, rows).tolist()):
        print(f"row {number}: click with probability {probability:.3f}")


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:  # those of graphlossy say in one line what is wrong
        sys.exit(f"error: {error}")
