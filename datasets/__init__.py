"""Graph data sets: loaders, generators and the embedded default graph."""

if __name__ != "graphlossy.datasets":
    from graphlossy._checkout import hand_over

    hand_over(__name__, __file__)
else:
    from graphlossy.datasets import synthetic
    from graphlossy.datasets._check import check_data
    from graphlossy.datasets._errors import DatasetError
    from graphlossy.datasets._folder import save_folder
    from graphlossy.datasets._load import load, names
    from graphlossy.datasets._planetoid import prepare

    __all__ = ["DatasetError", "check_data", "load", "names", "prepare", "save_folder", "synthetic"]
