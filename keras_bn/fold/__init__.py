"""Folding: batch normalizations disappear into their neighbours, result unchanged.

Plan, then apply once: `plan` decides on a read-only view of the model where every
normalization goes, `keras_bn.graph.rebuild` builds the folded model from the plan.
"""

from keras_bn._callable_module import make_callable

make_callable(__name__, "keras_bn.fold.api:fold")
