"""`keras_bn.fold`: read the model, plan, rebuild, verify."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras

from keras_bn.fold.plan import FoldPlan, plan
from keras_bn.fold.result import FoldResult
from keras_bn.fold.verify import Verifier
from keras_bn.graph.rebuild import rebuild
from keras_bn.graph.trace import opened
from keras_bn.graph.view import view


def fold(
    model: keras.Model,
    *,
    keep: Collection[str] = (),
    rebase: bool = True,
    one_operation: bool = False,
    duplicate: bool = False,
    verify: bool = True,
) -> FoldResult:
    """Fold every batch normalization of `model` that algebra allows into its neighbours.

    In inference a batch normalization is a scale and a shift per channel. Layers with weights,
    such as convolutions, Dense, attention and recurrent layers, take both into them, across
    whatever leaves channels alone in between. Where only one of the two can go, it goes, and the
    other is left as one addition or multiplication. Rescaling, Normalization, the gamma and beta
    of a LayerNormalization, and constants that something is multiplied by or added to are scales
    and shifts as well, and go likewise. The arithmetic is done in float64 and stored in each
    variable's dtype, so that the folded model differs from the original by rounding only.

    Layers and models of your own that are made of other layers are opened up: what they call
    becomes part of the folded model, in a nested model of their name.

    Args:
        model: A built model: Functional, Sequential, or subclassed if its `call` runs on symbolic
            tensors. It is not changed.
        keep: Names of normalizations to leave alone; "model/layer" inside a nested model.
        rebase: Whether tensors that several layers read may be stored otherwise than the original
            computes them, as the stream of a ResNetV2, which those layers make good for. It
            may widen the range of values there.
        one_operation: Whether a scale and shift of images that can go nowhere becomes a depthwise
            convolution of one tap. LiteRT runs that as one operation, not two; `keras_bn.convert`
            asks for it. A layer normalization behind a linear layer likewise becomes a root mean
            square normalization, its mean taken out of that layer's weights.
        duplicate: Whether a normalization may fold into a copy of the layer in front of it where
            that feeds others too, at the cost of computing it twice.
        verify: Whether to run both models on random inputs, and to leave alone every
            normalization whose folding makes the result worse than rounding does.

    Returns:
        A `FoldResult` with the folded model, not compiled, and a record for every
        normalization: what it was folded into, or the reason that it stayed. One that gave an
        output of a Functional model leaves an Identity of its name, by which losses know it.
        The model is an ordinary one, which warns when it is trained.

    Raises:
        UnsupportedModelError: the model's graph cannot be read, a layer cannot be made from its
            configuration, or statistics are not finite.
        ValueError: `keep` names no normalization of this model.

    Example:
        >>> import keras, keras_bn
        >>> model = keras.Sequential([
        ...     keras.Input((8, 8, 3)),
        ...     keras.layers.Conv2D(4, 3, name="conv"),
        ...     keras.layers.BatchNormalization(name="bn"),
        ... ])
        >>> result = keras_bn.fold(model)
        >>> result.folded
        [FoldedLayer(layer='bn', into='conv', rule='backward into Conv2D')]
        >>> [layer.name for layer in result.model.layers]
        ['conv']
    """
    readable = opened(model)

    def attempt(kept: Collection[str]) -> tuple[FoldPlan, keras.Model]:
        decisions = plan(
            view(readable.model),
            keep=kept,
            rebase=rebase,
            one_operation=one_operation,
            duplicate=duplicate,
            closed=readable.closed,
        )
        return decisions, rebuild(readable.model, decisions.changes)

    decisions, folded = attempt(keep)
    if not verify:
        return _result(decisions, folded, math.nan, {})
    verdict_on = Verifier(model, readable.model)
    verdict = verdict_on(folded)
    undone: dict[str, str] = {}
    while not verdict.holds:

        def holds_without(left: Sequence[str], kept: Collection[str] = (*keep, *undone)) -> bool:
            return verdict_on(attempt({*kept, *left})[1]).holds

        harmful = _harmful(decisions.moved, holds_without)
        if harmful is None:
            break
        undone[harmful] = f"folding it made the result worse: {verdict}"
        decisions, folded = attempt({*keep, *undone})
        verdict = verdict_on(folded)
    return _result(decisions, folded, verdict.max_abs_error, undone)


def _harmful(moved: Sequence[str], holds_without: Callable[[Sequence[str]], bool]) -> str | None:
    """The first of the normalizations `moved` with which the result stops to hold.

    None where it does not hold even without any of them.
    """
    if not holds_without(moved):
        return None
    good, bad = 0, len(moved)  # how many of them move
    while bad - good > 1:
        middle = (good + bad) // 2
        if holds_without(moved[middle:]):
            good = middle
        else:
            bad = middle
    return moved[good]


def _result(
    decisions: FoldPlan, folded: keras.Model, max_abs_error: float, undone: Mapping[str, str]
) -> FoldResult:
    def told(records: list[Any]) -> list[Any]:
        return [
            replace(record, reason=undone[record.layer]) if record.layer in undone else record
            for record in records
        ]

    _warn_when_trained(folded, len(decisions.folded))
    return FoldResult(
        folded, decisions.folded, told(decisions.kept), max_abs_error, told(decisions.others)
    )


def _warn_when_trained(model: keras.Model, count: int) -> None:
    """Have `model` say that nothing in it normalizes any more when its training begins."""
    if not count:
        return
    make_train_function = model.make_train_function

    @functools.wraps(make_train_function)
    def warn_and_make(*args: Any, **arguments: Any) -> Any:
        warnings.warn(
            f"'{model.name}' is for inference: {count} batch "
            f"normalization{'s were' if count > 1 else ' was'} folded into its weights, and "
            "nothing normalizes in its place. Train the original and fold it anew.",
            stacklevel=3,
        )
        return make_train_function(*args, **arguments)

    vars(model)["make_train_function"] = warn_and_make  # setattr would track it
