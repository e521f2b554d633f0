import pytest

from graphlossy.train import TrainConfig, TrainError, resolve_device


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": "saeg"}, "did you mean sage"),
        ({"bits": (5,)}, "bits must be 1, 2, 3, 4 or 8, got 5"),
        ({"bits": ()}, "bits"),
        ({"bits": (2, 2)}, "bits"),
        ({"epochs": -1}, "epochs must be a whole number of at least 1, got -1"),
        ({"epochs": 2.5}, "epochs"),
        ({"layers": 0}, "layers"),
        ({"hidden": 0}, "hidden"),
        ({"seeds": 0}, "seeds"),
        ({"seed": -1}, "seed"),
        ({"threads": 0}, "threads"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": -0.1}, "dropout"),
        ({"lr": 0.0}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"adj": "coo"}, "adj"),
        ({"schemes": ()}, "schemes"),
        ({"schemes": ("baseline", "baseline")}, "schemes"),
        ({"schemes": ("compresed",)}, "did you mean compressed"),
        ({"model": "gat", "hidden": 30, "heads": 4}, "multiple of heads"),
        ({"budget": "lots"}, "lots"),
        ({"budget": "0MiB"}, "0MiB"),
        ({"budget": "-3MiB"}, "-3MiB"),
        ({"budget": 3}, "budget must be a text, got 3"),
        ({"budget": "1MiB", "schemes": ("baseline",)}, "budget is for compressed runs"),
        ({"dataset": 7}, "dataset must be a text, got 7"),
        ({"dataset": "a\0b"}, "dataset must be a text"),
        ({"amp": "x"}, "amp must be true or false"),
        ({"norm": 1}, "norm must be true or false"),
        ({"threads": 100_000}, "threads must be a whole number from 1 to 1024, got 100000"),
        ({"hidden": 10**9}, "hidden must be a whole number from 1 to"),
        ({"hidden": 10**20}, "hidden"),
        ({"layers": 10**9}, "layers"),
        ({"lr": 1e300}, "lr must be a positive number of at most 1e+30, got 1e+300"),
        ({"weight_decay": 1e300}, "weight_decay"),
        ({"sampler": "neighbour"}, "did you mean neighbor"),
        ({"batch_size": 10}, "batch_size is for sampler neighbor, degree-neighbor"),
        ({"batch_size": 0, "sampler": "neighbor"}, "batch_size must be a whole number from 1"),
        ({"num_neighbors": (5, 5, 5)}, "but there is no sampler"),
        ({"num_neighbors": (5, 5), "sampler": "neighbor"}, "one number for each of the 3 layers, got 5,5"),
        ({"num_neighbors": (5, 0, 5), "sampler": "neighbor"}, "num_neighbors"),
        ({"num_parts": 4, "sampler": "neighbor"}, "num_parts is for sampler cluster, but there is sampler neighbor"),
        ({"walk_length": 2, "sampler": "cluster"}, "walk_length is for sampler saint-walk"),
        ({"num_workers": 2}, "num_workers"),
        ({"num_workers": -1, "sampler": "neighbor"}, "num_workers"),
        ({"batch_size": 9, "sampler": "sparsify"}, "batch_size"),
        ({"sparsify": "degre:0.5"}, "did you mean degree"),
        ({"sparsify": "degree"}, "METHOD:SHARE"),
        ({"sparsify": "degree:0"}, "above 0 and at most 1"),
        ({"sparsify": "degree:1.5"}, "above 0 and at most 1"),
        ({"sparsify": "degree:nan"}, "above 0 and at most 1"),
        ({"sparsify_eval": True}, "sparsify_eval needs sparsify"),
        ({"reweight": False}, "reweight needs sparsify"),
        ({"sparsify": "degree:0.5", "reweight": True, "model": "gat"}, "reweight is not for gat"),
        ({"sparsify": "local-degree:0.5", "reweight": True}, "reweight is not for sparsify local-degree"),
        ({"sampler": "sparsify"}, "sampler sparsify needs sparsify"),
        ({"sparsify": "random:0.5", "sampler": "sparsify"}, "must be degree:SHARE, got 'random:0.5'"),
        ({"sparsify": "degree:0.5", "sampler": "sparsify", "sparsify_eval": True}, "sparsify_eval"),
        ({"eval_every": 0}, "eval_every"),
        ({"eval_batch": 0}, "eval_batch"),
        ({"scale": 0.0}, "scale must be a positive number"),
        ({"root": 3}, "root must be a text"),
        ({"preset": "dgl"}, "preset"),
    ],
)
def test_a_bad_setting_is_named(settings, words):
    with pytest.raises(TrainError, match="budget" if "budget" in settings else None) as caught:
        TrainConfig(**settings)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_schemes_of_a_comparison():
    assert [s.label for s in TrainConfig(bits=(4, 1)).comparison()] == ["baseline", "4-bit", "1-bit"]
    assert [s.label for s in TrainConfig(budget="1.5 GiB").comparison()] == ["baseline", "budget-1.5GiB"]
    assert [s.label for s in TrainConfig(schemes=("compressed",)).comparison()] == ["2-bit"]


def test_settings_survive_json():
    import json

    config = TrainConfig(bits=(4, 2), budget="2MiB", threads=3, sampler="neighbor", num_neighbors=(4, -1, 2))
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("change", [{"colour": "red"}, {"epochs": "many"}, {"dropout": None}])
def test_damaged_settings_are_refused(change):
    with pytest.raises(TrainError):
        TrainConfig.from_dict({**TrainConfig().to_dict(), **change})


@pytest.mark.parametrize("name", ["gpu", "mps", "cpu:x", "cuda:999"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(TrainError, match="device"):
        resolve_device(name)
