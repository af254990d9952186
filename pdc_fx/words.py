"""Numbers and names as people read them, on pages and in a terminal."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence


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


def share(part: float, whole: float) -> str:
    """A part of a whole, in per cent.

    >>> share(1, 8), share(1, 0)
    ('12.5%', '-')
    """
    return f"{part / whole:.1%}" if whole else "-"


def told_apart(names: Sequence[str]) -> list[str]:
    """Names that occur more than once, as those of the sets that a group norm makes of one layer, with their number.

    >>> told_apart(["stem", "mix", "mix"])
    ['stem', 'mix (1 of 2)', 'mix (2 of 2)']
    """
    several, seen, found = Counter(names), Counter[str](), []
    for name in names:
        seen[name] += 1
        found.append(name if several[name] == 1 else f"{name} ({seen[name]} of {several[name]})")
    return found


def visible(text: str) -> str:
    r"""Write control, bidirectional and unpaired surrogate characters as escapes; they would hide or garble what follows.

    >>> visible("a\u202eb\x00\ud800"), visible("Ünïcode 层")
    ('a\\u202eb\\u0000\\ud800', 'Ünïcode 层')
    """
    if text.isascii() and text.isprintable():
        return text
    hidden = {c for c in set(text) if unicodedata.category(c) in {"Cc", "Cf", "Cs"} and c not in "\n\t\u200d"}
    return text.translate({ord(c): f"\\u{ord(c):04x}" if ord(c) < 0x10000 else f"\\U{ord(c):08x}" for c in hidden})
