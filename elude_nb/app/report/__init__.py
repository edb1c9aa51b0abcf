"""One page that opens offline, with no kernel: what a split found, to look at and to hand on."""

from elude_nb.app.report.build import write_report

__all__ = ["write_report"]
