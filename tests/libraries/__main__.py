"""``python -m libraries``, in the folder ``tests``, prints the matrix of the last run.

With ``--write``, it also writes the page.
"""

from __future__ import annotations

import sys

from libraries import results
from libraries.page import PAGE, render, table

found = results.read()
if "--write" in sys.argv[1:]:
    if lacking := results.missing(found):
        sys.exit(f"Run `make test-libraries` first. Nothing is known of: {', '.join(lacking)}")
    PAGE.write_text(render(found))

if not found:
    sys.exit()
rows = [line.strip("|").replace("`", "").split("|") for line in table(found)]
del rows[1]
for name, versions, *_ in rows[1:]:
    print(f"{name.strip()}: {versions.strip()}")
print()
widths = [16, *(max(len(row[0]), 14) for row in rows[1:])]
# one line for each case, because there are more cases than libraries
for cells in zip(*rows, strict=True):
    if cells[0].strip() != "versions":
        print(*(cell.strip().ljust(width) for cell, width in zip(cells, widths, strict=True)))
