"""The ways a model can be quantized, and which arguments go together."""

from __future__ import annotations

from collections.abc import Collection, Iterable

# How the file quantizes its weights and activations → the dtypes its inputs and outputs can have.
IO_DTYPES = {
    "none": ("float32",),
    "float16": ("float32",),
    "dynamic": ("float32",),
    "int8": ("float32", "int8", "uint8"),
    "int16x8": ("float32", "int16"),
}
INTEGER_MODES = ("int8", "int16x8")
RECURRENT_FORMS = ("auto", "loop")


def check_options(
    modes: Collection[str], *, io_dtype: str, batch_size: int | None, recurrent: str
) -> None:
    """Refuse arguments that do not exist or do not go together.

    Raises:
        ValueError: Names the argument, what it received and what it takes.
    """
    if not modes:
        raise ValueError(f"Expected at least one of {_listed(IO_DTYPES)}; received no mode.")
    for mode in modes:
        if mode not in IO_DTYPES:
            raise ValueError(
                f"Expected quantize to be one of {_listed(IO_DTYPES)}; received {mode!r}."
            )
    offered = dict.fromkeys(dtype for mode in modes for dtype in IO_DTYPES[mode])
    if io_dtype not in offered:
        raise ValueError(
            f"Expected io_dtype to be one of {_listed(offered)} with quantize={_listed(modes)}; "
            f"received {io_dtype!r}."
        )
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(
            "Expected batch_size to be a positive integer, or None for any size; "
            f"received {batch_size!r}."
        )
    if recurrent not in RECURRENT_FORMS:
        later = " That form is not available in this version."
        raise ValueError(
            f"Expected recurrent to be one of {_listed(RECURRENT_FORMS)}; received "
            f"{recurrent!r}." + (later if recurrent in ("fused", "unroll") else "")
        )


def _listed(values: Iterable[str]) -> str:
    return ", ".join(map(repr, values))
