"""Programs: the command line, the tour of the notebooks, reports."""
