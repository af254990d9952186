"""An extension of griffe, which reads the docstrings for the Python reference: examples become code, roles become plain code.

Examples stand wherever they fit in a docstring, and run as doctests; Markdown would take ``>>>`` for a quotation.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

_EXAMPLE = re.compile(r"(?:^[ \t]*>>> .*\n?)(?:^(?![ \t]*$).*\n?)*", flags=re.MULTILINE)
_ROLE = re.compile(r":(?:class|func|meth|mod|attr|exc):`~?([\w.]+)`")


def readable(docstring: str) -> str:
    """The same docstring as Markdown."""

    def fenced(found: re.Match[str]) -> str:
        lines = found[0].rstrip("\n").splitlines()
        indent = " " * (len(lines[0]) - len(lines[0].lstrip()))
        return "\n".join([f"{indent}```pycon", *lines, f"{indent}```", ""])

    return _ROLE.sub(r"`\1`", _EXAMPLE.sub(fenced, docstring))


class Docstrings(Extension):
    """Called for each object that griffe has read."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = readable(obj.docstring.value)
