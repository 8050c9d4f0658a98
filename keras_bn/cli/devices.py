"""`keras-bn devices`: what there is to measure on."""

from __future__ import annotations

import click

from keras_bn.cli.terminal import Terminal, output_options


@click.command(short_help="List the devices to measure on.")
@click.argument("names", nargs=-1, metavar="[DEVICE...]")
@click.option("--python", metavar="PATH", help="Python to look for on other devices than the host.")
@output_options
def devices(names: tuple[str, ...], python: str | None, as_json: bool, verbose: bool) -> None:
    """What each DEVICE is, and what would measure there.

    Without DEVICE: this machine, and the Android devices that adb sees. Computers that are reached
    by ssh are named. Nothing is sent to a device. Exit code 3: a named one cannot be measured on.

    \b
    Example:
      keras-bn devices
      keras-bn devices host ssh://pi@raspberrypi.local --json
    """
    with Terminal(json=as_json, verbose=verbose) as terminal:
        from dataclasses import asdict

        from keras_bn.bench.devices import discover
        from keras_bn.cli.tables import device_tables
        from keras_bn.errors import DeviceError

        with terminal.steps() as step:
            step("asking " + (", ".join(names) or "what is there"))
            found = discover(names, python=python)
        terminal.print(*device_tables(found))
        terminal.emit({"devices": [asdict(device) for device in found]})
        if names and (unusable := [each.device for each in found if each.problem]):
            raise DeviceError(f"{', '.join(unusable)} cannot be measured on (see above)")
