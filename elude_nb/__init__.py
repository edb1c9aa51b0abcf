"""elude_nb: take the channels of a pretrained vision model apart, without changing its outputs.

>>> import elude_nb as en
>>> model = en.load_model("dinov2-small")  # doctest: +SKIP
>>> discover, unseen = en.load_images("photographs").split(0.5)  # doctest: +SKIP
>>> split = en.disentangle(model, discover, site="blocks.11.mlp.fc2", routing="elude-signed")  # doctest: +SKIP
>>> en.verify(split, unseen)  # the outputs are what they were  # doctest: +SKIP
>>> en.score(split, unseen)  # are the sub-units easier to read than their channels?  # doctest: +SKIP
>>> en.widgets.ChannelExplorer(split, unseen)  # look at them  # doctest: +SKIP

A folder of images or a list of files takes the place of ``"photographs"``; a timm name, a checkpoint or (through
`wrap_network`) any ``nn.Module`` takes the place of the model. ``elude-nb tour`` runs the notebooks, which tell the
whole story; ``elude-nb --help`` shows what the shell can do. Lengths and letters of the docstrings: ``n`` images,
``t`` tokens, ``d`` channels, ``s`` sources, ``g`` concepts, ``k`` sub-units of a channel.
"""

from typing import Any

import lazy_loader

from elude_nb._util import moved

__version__ = "0.3.0.dev0"

moved.install()  # import paths of 0.2 work for one version, with a DeprecationWarning

# Names are imported when they are first used (as `__init__.pyi` lists them), so that `elude-nb --help` needs no torch.
_lazy_import, _, _names = lazy_loader.attach_stub(__name__, __file__)
_ROOMS = {"baselines", "errors", "figures", "interpret", "scores", "steering", "text", "widgets"}
__all__ = sorted(set(_names) - _ROOMS)  # noqa: PLE0605 - a list, though computed


def __getattr__(name: str) -> Any:
    return _lazy_import(name) if name in _names else moved.attribute(name)


def __dir__() -> list[str]:
    return [*_names, "__version__"]
