"""``python -m mutants``, in the folder ``tests``, runs all mutants, or the named ones."""

from __future__ import annotations

import sys

from mutants.runner import run
from mutants.table import MUTANTS

known = {mutant.name: mutant for mutant in MUTANTS}
named = sys.argv[1:] or list(known)
if unknown := set(named) - set(known):
    sys.exit(f"There is no mutant {unknown.pop()!r}. There are: {', '.join(known)}.")
faults = run([known[name] for name in named])
print(*faults, sep="\n\n")
sys.exit(f"{len(faults)} went wrong." if faults else 0)
