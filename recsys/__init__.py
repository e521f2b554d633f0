"""Recommender models with lossy embedding tables."""

if __name__ != "graphlossy.recsys":
    from graphlossy._checkout import hand_over

    hand_over(__name__, __file__)
