"""How small should each table be? One file and one class a method, the same interface and byte budget for all.

>>> from graphlossy.recsys.methods import METHODS
>>> sorted(METHODS)[:6]
['dhe', 'frequency', 'full', 'hash', 'int2', 'int4']
"""

from graphlossy.recsys.methods._base import Method
from graphlossy.recsys.methods._problem import Problem
from graphlossy.recsys.methods._search import METHODS, make_method, search
from graphlossy.recsys.methods._sizes import SizeMethod
from graphlossy.recsys.methods.frequency import Frequency
from graphlossy.recsys.methods.full import Full
from graphlossy.recsys.methods.low_precision import LowPrecision
from graphlossy.recsys.methods.magnitude import Magnitude
from graphlossy.recsys.methods.mde import MDE
from graphlossy.recsys.methods.pep import PEP
from graphlossy.recsys.methods.pme import PME
from graphlossy.recsys.methods.post_training import Int2, Int4, Int8
from graphlossy.recsys.methods.shared import DHE, QR, ROBE, TT, Hash
from graphlossy.recsys.methods.sseds import SSEDS
from graphlossy.recsys.methods.uniform import Uniform

__all__ = ["DHE", "Frequency", "Full", "Hash", "Int2", "Int4", "Int8", "LowPrecision", "MDE", "METHODS", "Magnitude",
           "Method", "PEP", "PME", "Problem", "QR", "ROBE", "SSEDS", "SizeMethod", "TT", "Uniform", "make_method",
           "search"]  # fmt: skip
