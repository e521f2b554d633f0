"""Graph data sets: loaders, generators and the embedded default graph; and language models and text for them."""

if __name__ != "graphlossy.datasets":
    from graphlossy._checkout import hand_over

    hand_over(__name__, __file__)
else:
    from graphlossy.datasets import synthetic, text
    from graphlossy.datasets._catalogue import Entry, catalogue
    from graphlossy.datasets._check import check_data
    from graphlossy.datasets._errors import DatasetError
    from graphlossy.datasets._folder import save_folder
    from graphlossy.datasets._load import load, names
    from graphlossy.datasets._models import Model, find_model, models
    from graphlossy.datasets._ogb_evaluate import ogb_evaluate
    from graphlossy.datasets._prepare import prepare
    from graphlossy.datasets._prepare_model import prepare_model
    from graphlossy.datasets._statistics import Statistics, statistics
    from graphlossy.datasets._structure import Structure, open_structure
    from graphlossy.datasets._verify import Finding, verify
    from graphlossy.datasets._write_ogb import write_ogb

    __all__ = [
        "DatasetError",
        "Entry",
        "Finding",
        "Model",
        "Statistics",
        "Structure",
        "catalogue",
        "check_data",
        "find_model",
        "load",
        "models",
        "names",
        "ogb_evaluate",
        "open_structure",
        "prepare",
        "prepare_model",
        "save_folder",
        "statistics",
        "synthetic",
        "text",
        "verify",
        "write_ogb",
    ]
