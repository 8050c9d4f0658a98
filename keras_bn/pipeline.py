"""From a Keras model to `.tflite` files that were checked against it.

Load, check the weights, fold, export once; then for each mode convert, look inside the file,
compare it with the original model, and only then put it in place.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_bn.compare.api import RANDOM_SAMPLES, compare_with_outputs
from keras_bn.compare.result import Comparison
from keras_bn.compare.run import LiteRunnable, predict
from keras_bn.convert.flatbuffer import Contents, read_contents
from keras_bn.convert.modes import INTEGER_MODES, IO_DTYPES, check_options
from keras_bn.convert.process import ConverterProcess
from keras_bn.convert.result import Conversion
from keras_bn.errors import (
    CalibrationError,
    ComparisonError,
    ConversionError,
    UnsupportedModelError,
)
from keras_bn.files import replacing, require_writable
from keras_bn.quantize.calibration import DEFAULT_SAMPLES, calibration_data
from keras_bn.samples import Samples, random_samples, read_samples
from keras_bn.signature import input_specs

if TYPE_CHECKING:
    import keras

# Largest relative error where the caller names none. Float files differ from Keras by rounding,
# at most 2e-6 for MobileNetV2, MobileNetV3Small, EfficientNetB0 and DenseNet121, while an error
# of the conversion shows as 0.1 or more. float16 rounds weights to 2⁻¹¹, which depth amplifies.
# What integers cost depends on the model and the data, and is for the caller to judge.
DEFAULT_TOLERANCE = {"none": 1e-3, "float16": 5e-2}


Progress = Callable[[str], None]


def convert(
    model: keras.Model | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    quantize: str = "none",
    calibration: Any = None,
    io_dtype: str = "float32",
    batch_size: int | None = 1,
    fold: bool = True,
    recurrent: str = "auto",
    tolerance: float | None = None,
    data: Any = None,
    allow_float: bool = False,
    allow_flex: bool = False,
    process: ConverterProcess | None = None,
    progress: Progress | None = None,
    verbose: bool = False,
) -> Conversion:
    """Convert a Keras model to a `.tflite` file and check the file against the model.

    Batch normalizations are folded first, then the model is converted in a process of its own,
    and what comes out is run beside the Keras model. The file appears at `path` only when all of
    that went well; until then, and after any error, whatever was at `path` stays as it was.

    Args:
        model: A built Functional or Sequential model, or a path to a `.keras` or `.h5` file.
        path: The file to write. Its folder has to exist.
        quantize: "none" (float32), "float16" (weights stored in float16), "dynamic" (weights in
            int8, activations in float), "int8" (both in int8) or "int16x8" (weights in int8,
            activations in int16).
        calibration: For "int8" and "int16x8": samples like those the model will meet, in any
            form that `keras_bn.samples.read_samples` takes; 200 of them are used.
        io_dtype: Dtype of the file's inputs and outputs that are float in Keras: "float32", for
            "int8" also "int8" or "uint8", for "int16x8" also "int16".
        batch_size: The file's batch size. None leaves it free, at a cost in speed.
        fold: Whether to fold batch normalizations first (`keras_bn.fold`).
        recurrent: How recurrent layers are converted: "loop", a loop over the steps; "auto",
            the best form that this version offers, which is the loop.
        tolerance: Largest allowed error, as a share of the largest absolute value of the output
            it occurs in. None allows 0.001 for "none", 0.05 for "float16" and for models of
            mixed precision, and any finite error for the rest.
        data: Samples to compare on. None compares on the calibration samples where there are
            some, else on 16 random ones.
        allow_float: Accept an "int8" or "int16x8" file in which operations compute in float.
        allow_flex: Accept a file that needs TensorFlow's kernels (the flex delegate) where
            LiteRT has no operation. Such a file cannot be compared here: `comparison` is None.
        process: A `ConverterProcess` to convert in. Default: one for this call. Starting one
            costs seconds, so one for many calls is faster.
        progress: Called with a few words at the start of each step.
        verbose: Let what TensorFlow's converter prints through to standard error.

    Returns:
        A `Conversion`: the file, what is in it, and how far it is from `model`.

    Raises:
        ValueError: An argument has a value that does not exist, or does not go with another.
        OSError: `path` cannot be written; found out before the work begins where possible.
        UnsupportedModelError: The model cannot be read, or its weights are not finite.
        CalibrationError: Calibration data are missing or do not suit the model.
        ConversionError: The converter refused the model or crashed, or the file holds float or
            flex operations that were not allowed; the message names them.
        ComparisonError: The file is further from the model than `tolerance`.

    Example:
        >>> import keras, keras_bn, tempfile
        >>> x = keras.Input((8, 8, 3))
        >>> y = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3)(x))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     conversion = keras_bn.convert(keras.Model(x, y), f"{folder}/model.tflite")
        >>> conversion.ops
        Counter({'CONV_2D': 1})
    """
    (conversion,) = convert_all(
        model,
        {quantize: path},
        calibration=calibration,
        io_dtype=io_dtype,
        batch_size=batch_size,
        fold=fold,
        recurrent=recurrent,
        tolerance=tolerance,
        data=data,
        allow_float=allow_float,
        allow_flex=allow_flex,
        process=process,
        progress=progress,
        verbose=verbose,
    )
    return conversion


def convert_all(
    model: keras.Model | str | os.PathLike[str],
    paths: Mapping[str, str | os.PathLike[str]],
    *,
    calibration: Any = None,
    io_dtype: str = "float32",
    batch_size: int | None = 1,
    fold: bool = True,
    recurrent: str = "auto",
    tolerance: float | None = None,
    data: Any = None,
    allow_float: bool = False,
    allow_flex: bool = False,
    process: ConverterProcess | None = None,
    progress: Progress | None = None,
    verbose: bool = False,
    failures: dict[str, Exception] | None = None,
) -> list[Conversion]:
    """Convert a model in several modes, with one fold, one export and one process.

    Args:
        model: As for `convert`.
        paths: From mode to the file to write, e.g. {"none": "m.tflite", "int8": "m8.tflite"}.
            The files are put in place one after the other: an error in one mode leaves those
            before it written.
        io_dtype: Holds for the modes that offer it; the others keep float32.
        failures: Where given, a calibration, conversion or comparison error of one mode is put
            here under that mode, and the other modes go on. None raises it.

    The other arguments, and the errors, are those of `convert`.

    Returns:
        One `Conversion` for each mode that did not fail, in the order of `paths`.
    """
    check_options(paths, io_dtype=io_dtype, batch_size=batch_size, recurrent=recurrent)
    files = {mode: Path(path) for mode, path in paths.items()}
    for file in files.values():
        require_writable(file)
    if tolerance is not None and not tolerance >= 0:
        raise ValueError(f"Expected tolerance to be 0 or more, or None; received {tolerance!r}.")
    if calibration is None and failures is None:
        for mode in files:
            _ranges_for(mode, None)
    step = progress or _silent
    with contextlib.ExitStack() as stack:
        process = process or stack.enter_context(ConverterProcess(verbose=verbose))
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=process.folder)))

        # Imported here: Keras takes seconds, which the process uses to import TensorFlow.
        import keras

        from keras_bn.convert.export import export
        from keras_bn.fold.api import fold as fold_batch_norm
        from keras_bn.loading import load_model, require_finite_weights

        if isinstance(model, str | os.PathLike):
            step(f"load {model}")
            model = load_model(model)
        elif not isinstance(model, keras.Model):
            raise TypeError(
                f"Expected model to be a keras.Model or a path; received {type(model).__name__}."
            )
        require_finite_weights(model)
        model = _with_a_graph(model)
        ranges = None if calibration is None else calibration_data(model, calibration)
        samples = _comparison_samples(model, data, ranges)
        folded = None
        if fold:
            step("fold")
            folded = fold_batch_norm(model, one_operation=True)
        step("export")
        exported = export(folded.model if folded else model, scratch, batch_size=batch_size)
        expected = functools.cache(functools.partial(predict, model, samples))

        conversions = []
        for mode, file in files.items():
            try:
                step(f"convert to {mode}")
                asked_io = io_dtype if io_dtype in IO_DTYPES[mode] else "float32"
                process.submit(
                    exported,
                    quantize=mode,
                    io_dtype=asked_io,
                    calibration=_ranges_for(mode, ranges),
                    allow_flex=allow_flex,
                )
                expected()  # the original's outputs, while the process is at work
                tflite = process.result()
                contents = read_contents(tflite)
                if mode in INTEGER_MODES and not allow_float:
                    _require_no_float(contents, mode)
                if asked_io != "float32":
                    _require_io(contents, asked_io)
                comparison = None
                if not any(op.startswith("Flex") for op in contents.ops):
                    step(f"compare {mode}")
                    candidate = LiteRunnable(tflite, name=str(file))
                    comparison = compare_with_outputs(expected(), candidate, samples)
                    _require_close(comparison, _tolerance(tolerance, mode, model), file)
                with replacing(file) as temporary:
                    temporary.write_bytes(tflite)
            except (CalibrationError, ConversionError, ComparisonError) as error:
                if failures is None:
                    raise
                failures[mode] = error
                continue
            conversions.append(
                Conversion(
                    path=file,
                    size_bytes=len(tflite),
                    quantize=mode,
                    ops=contents.ops,
                    float_ops=contents.float_ops if mode in INTEGER_MODES else Counter(),
                    comparison=comparison,
                    fold=folded,
                )
            )
    return conversions


def _with_a_graph(model: keras.Model) -> keras.Model:
    """`model`, or in place of a subclassed one a Functional one that computes the same.

    Raises:
        UnsupportedModelError: The subclassed model cannot be traced, or does something else then.
    """
    from keras_bn.fold.verify import Verifier
    from keras_bn.graph.trace import opened
    from keras_bn.graph.view import functional_graph

    if functional_graph(model) is not None:
        return model
    traced = opened(model).model
    verdict = Verifier(model, traced)(traced)
    if not verdict.holds:
        raise UnsupportedModelError(
            f"'{model.name}' ({type(model).__name__}) computes something else when it is called on "
            f"symbolic tensors: {verdict}. Build it with the Functional API."
        )
    return traced


def _comparison_samples(model: keras.Model, data: Any, ranges: Samples | None) -> Samples:
    """What the caller named, else the calibration samples, else random ones."""
    if data is not None:
        return read_samples(data, input_specs(model), error=ComparisonError)
    return ranges or random_samples(model, RANDOM_SAMPLES)


def _ranges_for(mode: str, ranges: Samples | None) -> Samples | None:
    """Calibration samples for the modes that need them, which without any is an error."""
    if mode not in INTEGER_MODES:
        return None
    if ranges is None:
        raise CalibrationError(
            f"Expected calibration data, from which {mode} takes the ranges of its activations; "
            "received none. Pass calibration=: an .npz file, arrays or a dataset of about "
            f"{DEFAULT_SAMPLES} samples like those the model will meet."
        )
    return ranges


def _silent(step: str) -> None:
    """The progress of a caller who did not ask for it."""


def _require_io(contents: Contents, io_dtype: str) -> None:
    """The converter leaves what no quantized operation touches in float, and says nothing."""
    if left := contents.io_dtypes["float32"]:
        raise ConversionError(
            f"Expected inputs and outputs of {io_dtype}; {left} of {contents.io_dtypes.total()} "
            "stayed float32, since no quantized operation reads or gives them. Keep "
            'io_dtype="float32", or take unused inputs and constant outputs out of the model.'
        )


def _require_no_float(contents: Contents, mode: str) -> None:
    if contents.float_ops:
        listed = ", ".join(f"{name} ({count})" for name, count in contents.float_ops.items())
        raise ConversionError(
            f"Expected every operation of an {mode} file to compute in integers; LiteRT left these "
            f"in float: {listed}. Replace the layers that use them, or accept them with "
            "allow_float=True."
        )


def _tolerance(tolerance: float | None, mode: str, model: keras.Model) -> float:
    """The largest relative error allowed; infinite where any finite error is."""
    from keras_bn.convert.export import REDUCED_FLOATS

    if tolerance is not None:
        return tolerance
    if mode == "none" and any(
        layer.compute_dtype in REDUCED_FLOATS for layer in model._flatten_layers()
    ):
        mode = "float16"  # the reference itself is no more precise than that
    return DEFAULT_TOLERANCE.get(mode, math.inf)


def _require_close(comparison: Comparison, tolerance: float, path: Path) -> None:
    worst = max(comparison.outputs, key=lambda output: output.relative_error)
    if math.isinf(worst.max_abs_error):
        raise ComparisonError(
            f"Expected finite outputs; output {worst.name!r} of the model or of the file has NaN "
            f"or infinite values that the other has not. {path} was not written. Look at the "
            "model's outputs for these samples, or compare on others with data=."
        )
    if worst.relative_error > tolerance:
        raise ComparisonError(
            f"Expected every output within {tolerance:g} of the model's, relative to its largest "
            f"value; output {worst.name!r} is {worst.relative_error:.3g} away "
            f"({worst.snr_db:.1f} dB). {path} was not written. Try another quantize mode or more "
            "calibration samples, or accept this with a larger tolerance=."
        )
