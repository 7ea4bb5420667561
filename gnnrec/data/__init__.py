"""Data: interaction logs from files and generators, splits, and the catalog of public data sets."""
