"""What `elude_nb.report` is made of: what is looked at, its packing into a small page, charts, and the page itself."""
