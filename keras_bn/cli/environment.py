"""What a result was made with."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from keras_bn import __version__


def versions() -> dict[str, str]:
    """Versions of keras-bn, the libraries it stands on, Python and the operating system."""
    found = {"keras-bn": __version__}
    for package in ("tensorflow", "keras", "ai-edge-litert", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a build under another name, such as tensorflow-cpu
            found[package] = "unknown"
    return found | {"python": platform.python_version(), "platform": platform.platform()}
