"""Packages that are also functions: `keras_bn.fold(model)` beside `keras_bn.fold.plan`.

The public functions share their names with the packages that implement them, and Python binds
a package's name on its parent as soon as anything inside it is imported. Making the package
itself callable keeps both readings true whatever was imported first.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any


def resolve(target: str) -> Any:
    """The object named by `target`, written "package.module:attribute"."""
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)


def make_callable(name: str, target: str) -> None:
    """Let the imported package `name` be called as the function that `target` names.

    `target` is imported on the first call, so that importing the package stays cheap.
    """

    class CallableModule(ModuleType):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return resolve(target)(*args, **kwargs)

        @property
        def __wrapped__(self) -> Callable[..., Any]:  # where inspect.signature and help look
            return resolve(target)

    sys.modules[name].__class__ = CallableModule
