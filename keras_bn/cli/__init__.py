"""The command line: each command parses, calls the library, prints.

Command modules import nothing heavy at their top, so that `--help` answers at once.
"""

import click

from keras_bn import __version__
from keras_bn.cli.bench import bench
from keras_bn.cli.compare import compare
from keras_bn.cli.convert import convert
from keras_bn.cli.demo import demo
from keras_bn.cli.devices import devices
from keras_bn.cli.fold import fold
from keras_bn.cli.report import report
from keras_bn.cli.run import run


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="keras-bn")
def cli() -> None:
    """From a Keras 3 model to a verified, benchmarked .tflite file.

    Results go to standard output, progress and warnings to standard error. With --json, standard
    output is one JSON document. Exit codes: 0 done; 1 the result falls short of what was asked;
    2 bad usage or bad input; 3 a device failed.
    """


for command in (fold, convert, compare, devices, bench, report, run, demo):
    cli.add_command(command)
