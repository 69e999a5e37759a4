"""The site made of the documents: `make docs`, then open build/site/index.html. A broken link fails it."""

from __future__ import annotations

project = "asyncchatd"
author = "The asyncchatd authors"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
include_patterns = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "*/*.md"]
exclude_patterns = [".*", "build", "tests", "*/node_modules"]
root_doc = "docs/index"
html_theme = "furo"
html_title = "asyncchatd"
myst_heading_anchors = 4
nitpicky = True
suppress_warnings = ["misc.highlighting_failure"]  # the site shows the picture of the imports as text
