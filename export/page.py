"""What every page has in common: one self-contained file that asks for nothing, whose names are all escaped.

Styles and scripts are written into the page. Its content security policy forbids every request and every script but its own,
which it knows by their hash, so that no name of a module could become code even if its escaping failed. Every value goes through
Jinja2's autoescape, and characters that would be invisible, reorder the text or not survive UTF-8 are written as escapes.
"""

from __future__ import annotations

import base64
import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any


def render(template: str, *, scripts: Sequence[str] = (), data: Mapping[str, Any] | None = None, **values: Any) -> str:
    """A page as text.

    Args:
        template: its name in ``export/templates``.
        scripts: names of the scripts there that it holds, in order; they run as one.
        data: what the scripts read, as plain values.
        values: what the template reads.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("pdc_fx.export"),
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
    """Scripts from ``export/templates`` as the text of one element, in a scope of their own."""
    folder = resources.files("pdc_fx.export") / "templates"
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


def quantity(count: float) -> str:
    """A count with a decimal prefix and three digits.

    >>> quantity(1_814_073_344), quantity(11_689_512), quantity(999_999), quantity(850)
    ('1.81 G', '11.7 M', '1 M', '850')
    """
    value, prefix = float(count), ""
    for larger in ("k", "M", "G", "T"):
        if float(f"{value:.3g}") < 1000:
            break
        value, prefix = value / 1000, larger
    return f"{float(f'{value:.3g}'):g} {prefix}".rstrip()


def number(count: int, what: str) -> str:
    """A count with its noun.

    >>> number(1, "group"), number(2000, "group"), number(0, "layer")
    ('1 group', '2,000 groups', '0 layers')
    """
    return f"{count:,} {what if count == 1 else what + 's'}"


def percent(share: float) -> str:
    """A share between 0 and 1 with one decimal; it reads 0% or 100% only where that is exact.

    >>> percent(0.6153), percent(0.0), percent(0.0001), percent(0.99999), percent(1.0)
    ('61.5%', '0%', 'under 0.1%', 'over 99.9%', '100%')
    """
    if share in (0.0, 1.0):
        return f"{share:.0%}"
    if 0 < share < 0.0005:
        return "under 0.1%"
    return "over 99.9%" if 0.9995 <= share < 1 else f"{share:.1%}"


def visible(text: str) -> str:
    r"""Write control, bidirectional and unpaired surrogate characters as escapes; they would hide or garble what follows.

    >>> visible("a\u202eb\x00\ud800"), visible("Ünïcode 层")
    ('a\\u202eb\\u0000\\ud800', 'Ünïcode 层')
    """
    if text.isascii() and text.isprintable():
        return text
    hidden = {c for c in set(text) if unicodedata.category(c) in {"Cc", "Cf", "Cs"} and c not in "\n\t\u200d"}
    return text.translate({ord(c): f"\\u{ord(c):04x}" if ord(c) < 0x10000 else f"\\U{ord(c):08x}" for c in hidden})
