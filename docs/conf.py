"""Sphinx configuration. `make docs` builds the site."""

project = "Gatehouse"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "Gatehouse"
exclude_patterns = ["_build"]
myst_heading_anchors = 3
