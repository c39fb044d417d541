"""Names in CSV files that people open in spreadsheets: none of them may run as a formula.

A spreadsheet takes a cell that begins with =, +, - or @ for a formula, also where a tab or a line end comes first
(OWASP, "CSV Injection"; CWE-1236), and Excel in some languages the full-width forms of these. An apostrophe before it
makes it text. JSON lines and Parquet carry no formulas: names stay as they are there.

It knows nothing about files, and leaves numbers to the caller. What it cannot stop: a name with a semicolon in it may
be split by a spreadsheet that takes semicolons for the separator.
"""

from __future__ import annotations

import re
from typing import Final

_MARKS: Final = "=+\\-@\t\r\n\0\uff1d\uff0b\uff0d\uff20"
_FORMULA: Final = re.compile(f"'*[{_MARKS}]")  # with apostrophes before it too, or one of a name's own would get lost
_QUOTED: Final = re.compile(f"'+[{_MARKS}]")


def safe_cell(text: str) -> str:
    """Return ``text`` as a cell that no spreadsheet runs: behind an apostrophe where it could be a formula."""
    return "'" + text if _FORMULA.match(text) else text


def plain_cell(cell: str) -> str:
    """Return the text of which ``safe_cell`` made ``cell``; of any other cell the cell."""
    return cell[1:] if _QUOTED.match(cell) else cell
