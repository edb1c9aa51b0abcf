"""``python -m elude_nb`` is the command line, also as ``torchrun --nproc-per-node 4 -m elude_nb``."""

from elude_nb.app.cli import main

main()
