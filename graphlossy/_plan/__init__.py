"""``graphlossy.plan``: the bytes that training will save and need, predicted before anything of full size runs."""

from graphlossy._plan._api import plan
from graphlossy._plan._probe import BatchProbe, GraphProbe
from graphlossy._plan._result import Plan, Row
from graphlossy._plan._schemes import Scheme
from graphlossy._plan._shapes import KNOWN_GRAPHS, GraphShapes

__all__ = ["KNOWN_GRAPHS", "BatchProbe", "GraphProbe", "GraphShapes", "Plan", "Row", "Scheme", "plan"]
