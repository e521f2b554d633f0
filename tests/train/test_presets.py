import json

import pytest

from graphlossy.train import REFERENCES, TrainConfig, TrainError, build_model, comparison_notes, comparison_rows
from graphlossy.train._presets import compare_reference

SIZES = {"ogbn-arxiv": (128, 40), "ogbn-products": (100, 47), "ogbn-proteins": (8, 112)}
# Of OGB's leaderboard.
PARAMETERS = {
    ("ogbn-arxiv", "gcn"): 110_120,
    ("ogbn-arxiv", "sage"): 218_664,
    ("ogbn-products", "gcn"): 103_727,
    ("ogbn-products", "sage"): 206_895,
    ("ogbn-proteins", "gcn"): 96_880,
    ("ogbn-proteins", "sage"): 193_136,
}


@pytest.mark.parametrize(("dataset", "model"), list(PARAMETERS))
def test_the_reference_models_have_the_leaderboards_number_of_parameters(dataset, model):
    config = TrainConfig.from_preset("ogb", dataset, model=model)
    inputs, outputs = SIZES[dataset]
    made = build_model(model, inputs, config.hidden, outputs, config.layers, config.dropout, config.norm)
    assert sum(parameter.numel() for parameter in made.parameters()) == PARAMETERS[dataset, model]


def test_a_given_setting_takes_the_place_of_the_presets():
    config = TrainConfig.from_preset("ogb", "synth-proteins", epochs=7, dropout=0.25)
    assert (config.epochs, config.dropout, config.eval_every, config.norm) == (7, 0.25, 5, False)
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_folder_of_the_name_is_known_by_it():
    assert TrainConfig.from_preset("ogb", "/data/ogbn_products").epochs == 300


def test_sampled_training_has_its_own_epochs():
    epochs = [TrainConfig.from_preset("ogb", "ogbn-products", sampler=s).epochs for s in (None, "neighbor", "cluster")]
    assert epochs == [300, 20, 50]


@pytest.mark.parametrize(("preset", "dataset"), [("ogb", "cora"), ("dgl", "ogbn-arxiv")])
def test_what_has_no_preset_is_refused(preset, dataset):
    with pytest.raises(TrainError, match="preset"):
        TrainConfig.from_preset(preset, dataset)


def summary_of(config, synthetic, reference="ogbn-arxiv"):
    scheme = dict(run="baseline", status="done", seeds=2, test_mean=0.5, test_std=0.01, saved_bytes=9, peak_bytes=9,
                  seconds_per_epoch=0.1, ratio=None)  # fmt: skip
    data = {"name": config.dataset, "synthetic": synthetic, "reference": reference}
    found = compare_reference(reference, synthetic, config.to_dict())
    return {"schemes": [scheme], "metric": "accuracy", "data": data, "reference": found}


def test_the_leaderboards_figure_stands_beside_the_result():
    summary = summary_of(TrainConfig.from_preset("ogb", "ogbn-arxiv", model="sage"), synthetic=False)
    assert summary["reference"]["comparable"] and summary["reference"]["test"] == 0.7149
    assert ["OGB leaderboard, %", "71.49 ± 0.27"] in comparison_rows(summary)
    assert comparison_notes(summary) == ["OGB leaderboard: ogbn-arxiv, sage, full batch, 71.49 ± 0.27."]


def test_a_stand_in_is_marked_wherever_the_figure_stands():
    summary = summary_of(TrainConfig.from_preset("ogb", "synth-arxiv"), synthetic=True)
    assert not summary["reference"]["comparable"]
    assert ["OGB leaderboard, %", "(71.74 ± 0.29: not comparable)"] in comparison_rows(summary)
    notes = " ".join(comparison_notes(summary))
    assert "synthetic stand-in for ogbn-arxiv" in notes and "synthetic stand-in: not comparable" in notes


@pytest.mark.parametrize("change", [{"hidden": 64}, {"epochs": 5}, {"norm": False}, {"sparsify": "degree:0.5"}])
def test_other_settings_are_named(change):
    config = TrainConfig.from_preset("ogb", "ogbn-arxiv", **change)
    found = compare_reference("ogbn-arxiv", False, config.to_dict())
    assert not found["comparable"] and next(iter(change)) in found["remark"]


def test_a_sampled_result_is_compared_with_a_sampled_one_where_there_is_one():
    products = TrainConfig.from_preset("ogb", "ogbn-products", model="sage", sampler="neighbor")
    found = compare_reference("ogbn-products", False, products.to_dict())
    assert found["comparable"] and found["test"] == 0.7870 and found["method"] == "neighbour sampling"
    arxiv = TrainConfig.from_preset("ogb", "ogbn-arxiv", model="sage", sampler="neighbor")
    found = compare_reference("ogbn-arxiv", False, arxiv.to_dict())
    assert not found["comparable"] and "sampler" in found["remark"]


def test_models_and_graphs_without_a_figure_have_none():
    gat = TrainConfig.from_preset("ogb", "ogbn-arxiv", model="gat")
    assert compare_reference("ogbn-arxiv", False, gat.to_dict()) is None
    assert compare_reference(None, False, TrainConfig().to_dict()) is None
    assert all(0 < figure.std < 0.01 < figure.test < 1 for figure in REFERENCES.values())
