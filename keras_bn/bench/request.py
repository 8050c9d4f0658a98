"""What to measure, and how: the value that goes to a device."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Request:
    """One run of `runner.py`.

    Attributes:
        models: Paths of the `.tflite` files, on this machine.
        threads: Interpreter thread counts; every model is measured with each.
        runs, warmup: Timed invokes of each model and thread count, and untimed ones before.
        xnnpack: Whether the XNNPACK delegate may run what it can.
        affinity: The CPUs to stay on; None for all.
        cooldown_s: How long the run may wait, in all, for the device to cool between rounds.
        seed: Of the random inputs and of the order within a round.
        timeout_s: How long a device may be silent before the run is given up.
        progress: Called with (steps done, steps in all, what is being done).
    """

    models: tuple[str, ...]
    threads: tuple[int, ...]
    runs: int
    warmup: int
    xnnpack: bool
    affinity: tuple[int, ...] | None
    cooldown_s: float
    seed: int
    timeout_s: float
    progress: Progress | None

    def arguments(self, models: Iterable[str]) -> list[str]:
        """The runner's command line; `models` are the paths as the device knows them."""
        arguments = ["--watch-stdin", "--threads", _joined(self.threads)]
        arguments += ["--runs", str(self.runs), "--warmup", str(self.warmup)]
        arguments += ["--seed", str(self.seed), "--cooldown-s", str(self.cooldown_s)]
        if not self.xnnpack:
            arguments += ["--no-xnnpack"]
        if self.affinity is not None:
            arguments += ["--affinity", _joined(self.affinity)]
        return [*arguments, "--", *models]


def _joined(numbers: Iterable[int]) -> str:
    return ",".join(map(str, numbers))
