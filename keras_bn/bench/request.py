"""What to measure, and how: the value that goes to a device."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Request:
    """What every device of one call is asked for.

    Attributes:
        models: Paths of the `.tflite` files, on this machine.
        threads: Interpreter thread counts; every model is measured with each.
        runs, warmup: Timed invokes of each model and thread count, and untimed ones before.
        xnnpack: Whether the XNNPACK delegate may run what it can.
        affinity: The CPUs to stay on; None for all.
        cooldown_s: How long the run may wait, in all, for the device to cool between rounds.
        profile: Whether to time each operation as well, in a run of its own.
        seed: Of the random inputs and of the order within a round.
        timeout_s: How long a device may be silent before the run is given up.
        progress: Called with (steps done, steps in all, what is being done).
        python: The Python of a device reached through a shell; None to look for one.
        benchmark_binary: Path of LiteRT's benchmark_model for the device, on this machine.
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
    python: str | None = None
    benchmark_binary: str | None = None
    profile: bool = False

    @property
    def samples(self) -> int:
        """How many timed invokes there are in all."""
        return len(self.models) * len(self.threads) * self.runs

    @property
    def silence_advice(self) -> str:
        """What a silence of `timeout_s` may mean."""
        return (
            "A model that needs longer than that for one invoke needs a larger timeout_s; "
            f"otherwise one of {', '.join(self.models)} hangs."
        )

    def arguments(self, models: Iterable[str]) -> list[str]:
        """The runner's command line; `models` are the paths as the device knows them."""
        arguments = ["--watch-stdin", "--threads", _joined(self.threads)]
        arguments += ["--runs", str(self.runs), "--warmup", str(self.warmup)]
        arguments += ["--seed", str(self.seed), "--cooldown-s", str(self.cooldown_s)]
        if not self.xnnpack:
            arguments += ["--no-xnnpack"]
        if self.profile:
            arguments += ["--profile"]
        if self.affinity is not None:
            arguments += ["--affinity", _joined(self.affinity)]
        return [*arguments, "--", *models]


def _joined(numbers: Iterable[int]) -> str:
    return ",".join(map(str, numbers))
