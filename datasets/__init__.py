"""Graph data sets: loaders, generators and the embedded default graph."""

if __name__ != "graphlossy.datasets":
    from graphlossy._checkout import hand_over

    hand_over(__name__, __file__)
else:
    from graphlossy.datasets import synthetic
    from graphlossy.datasets._catalogue import Entry, catalogue
    from graphlossy.datasets._check import check_data
    from graphlossy.datasets._errors import DatasetError
    from graphlossy.datasets._folder import save_folder
    from graphlossy.datasets._load import load, names
    from graphlossy.datasets._ogb_evaluate import ogb_evaluate
    from graphlossy.datasets._prepare import prepare
    from graphlossy.datasets._statistics import Statistics, statistics
    from graphlossy.datasets._structure import Structure, open_structure
    from graphlossy.datasets._verify import Finding, verify
    from graphlossy.datasets._write_ogb import write_ogb

    __all__ = [
        "DatasetError",
        "Entry",
        "Finding",
        "Statistics",
        "Structure",
        "catalogue",
        "check_data",
        "load",
        "names",
        "ogb_evaluate",
        "open_structure",
        "prepare",
        "save_folder",
        "statistics",
        "synthetic",
        "verify",
        "write_ogb",
    ]
