"""What every page has in common: one self-contained file that asks for nothing, whose names are all escaped.

Styles and scripts are written into the page. Its content security policy forbids every request and every script but its own,
which it knows by their hash, so that no name of a module could become code even if its escaping failed. Every value goes through
Jinja2's autoescape, and characters that would be invisible, reorder the text or not survive UTF-8 are written as escapes.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from pdc_fx.words import percent, quantity, visible


def render(template: str, *, scripts: Sequence[str] = (), data: Mapping[str, Any] | None = None, **values: Any) -> str:
    """A page as text.

    Args:
        template: its name in ``export/pages/templates``.
        scripts: names of the scripts there that it holds, in order; they run as one.
        data: what the scripts read, as plain values.
        values: what the template reads.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("pdc_fx.export.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(quantity=quantity, exact="{:,}".format, percent=percent)
    script = script_of(scripts)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template(template).render(
        script=Markup(script),  # our own files, no value of a model among them
        script_source=f"'sha256-{digest}'" if script else "'none'",
        data=plain_text(data or {}),
        **values,
    )
    return visible(page)


def script_of(names: Sequence[str]) -> str:
    """Scripts from ``export/pages/templates`` as the text of one element, in a scope of their own."""
    folder = resources.files("pdc_fx.export.pages") / "templates"
    parts = [(folder / name).read_text(encoding="utf-8") for name in names]
    return '"use strict";\n{\n' + "\n".join(parts) + "}\n" if parts else ""


def plain_text(value: Any) -> Any:
    r"""Nested plain values with every text made :func:`visible`: a script would undo the escapes of JSON.

    >>> plain_text({"names": ["a\u202eb", 3]})
    {'names': ['a\\u202eb', 3]}
    """
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {visible(str(key)): plain_text(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_text(item) for item in value]
    return value
