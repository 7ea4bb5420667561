"""Runs' records in one page: records.py reads them, tables.py, figures.py and findings.py say what is in them,
render.py writes HTML, Markdown and CSV."""
