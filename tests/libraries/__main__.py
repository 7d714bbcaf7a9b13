"""``python -m libraries``, in the folder ``tests``: print the matrix of the last run.

With ``--write``, write the page too.
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

rows = [line.strip("|").split(" | ") for line in table(found)]
del rows[1]
for row in zip(*rows, strict=True):  # a case is a line: there are more of them than libraries
    print(*(cell.strip(" `").ljust(24) for cell in row))
