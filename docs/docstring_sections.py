"""Docstrings have sections that the parser of the API pages does not know: `Example:`, and `Cost:` with text behind."""

import re
from typing import Any

import griffe

COST = re.compile(r"^Cost: (.*(?:\n +\S.*)*)", re.MULTILINE)


class DocstringSections(griffe.Extension):
    """Rewrite the sections as they are read, so that doctests are shown as code and costs as a paragraph."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite those of one docstring."""
        if obj.docstring:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = COST.sub(lambda found: f"**Cost:** {' '.join(found[1].split())}", text)
