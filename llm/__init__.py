"""Language-model fine-tuning and serving with lossy state."""

if __name__ != "graphlossy.llm":
    from graphlossy._checkout import hand_over

    hand_over(__name__, __file__)
