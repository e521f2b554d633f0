"""Graph data sets: loaders, generators and the embedded default graph."""

if __name__ != "graphlossy.datasets":
    from graphlossy._checkout import hand_over

    hand_over(__name__, __file__)
