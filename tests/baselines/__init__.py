"""The methods that this environment has: overcomplete asks for Python below 3.13."""

from importlib.util import find_spec

from elude_nb.baselines import METHODS
from elude_nb.baselines.overcomplete import KINDS

_OTHERS = {f"{kind} SAE" for kind in KINDS if kind != "TopK"}
AVAILABLE = [name for name in METHODS if find_spec("overcomplete") or name not in _OTHERS]
