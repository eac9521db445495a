"""Networks of other libraries, by their names there: "torchvision:resnet18", "timm:resnet10t"."""

import difflib
from collections.abc import Callable, Sequence
from importlib import import_module, util

from torch import nn

from iadd_lab.errors import require

Builder = Callable[..., nn.Module]


def library_network(name: str) -> Builder:
    """The function (channels, size, classes) -> network of a name such as "torchvision:resnet18".

    Its weights are random ones, never pretrained.

    Raises:
        InputError: the library is not installed, or has no classifier of that name.
    """
    library, _, model = name.partition(":")
    mend = f"python -m pip install {library}"
    require(util.find_spec(library) is not None, f"network {name!r} needs {library}: {mend}.")
    return LIBRARIES[library](model)


def _check(library: str, model: str, known: Sequence[str]) -> None:
    close = difflib.get_close_matches(model, known, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    require(model in known, f"{library} has no classifier {model!r}{hint}: its list_models() names them.")


def _torchvision(model: str) -> Builder:
    models = import_module("torchvision.models")
    _check("torchvision", model, models.list_models(module=models))
    return lambda channels, size, classes: models.get_model(model, weights=None, num_classes=classes)


def _timm(model: str) -> Builder:
    timm = import_module("timm")
    _check("timm", model, timm.list_models())
    return lambda channels, size, classes: timm.create_model(model, num_classes=classes, in_chans=channels)


LIBRARIES: dict[str, Callable[[str], Builder]] = {"torchvision": _torchvision, "timm": _timm}
