"""Exercises: checks that say in one sentence what is wrong with an answer, and the notebooks that call them.

>>> from elude_nb import course
>>> course.check_chance(1 / 5, size=5)
Right. A kind of unit says something only if people are right more often than this.
"""

import lazy_loader

# As at the front door: `elude-nb class` needs the notebooks, and none of the checks with torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
