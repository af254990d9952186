"""The Python blocks of docs/writing-rules.md run, in order, and what the page says of them is so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import torch
from extension import registry_restored

from pdc_fx.rules import Site
from pdc_fx.rules.registry import Trait

PAGE = Path(__file__).resolve().parent.parent / "docs" / "writing-rules.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_the_blocks_run() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) > 5
    names: dict[str, Any] = {"__name__": "writing_rules"}
    torch.manual_seed(0)
    with registry_restored():
        for block in blocks:
            start = TEXT[: TEXT.index(block)].count("\n")
            exec(compile("\n" * start + block, str(PAGE), "exec", dont_inherit=True), names)


def names_in_the_table_of(section: str) -> set[str]:
    """What stands in the first column of the table under a heading."""
    _, _, text = TEXT.partition(f"\n## {section}")
    rows = re.findall(r"^\| (`.*?) \|", text.partition("\n## ")[0], flags=re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`(\w+)", row)}


def test_the_table_names_what_a_site_has() -> None:
    names = names_in_the_table_of("The Site")
    assert {"argument", "own", "produce"} <= names
    assert [name for name in sorted(names) if not hasattr(Site, name) and name not in Site.__dataclass_fields__] == []


def test_the_table_names_every_trait() -> None:
    assert names_in_the_table_of("Traits") == set(get_args(Trait))
