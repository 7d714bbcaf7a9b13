"""Every extra at once."""

import runpy
from pathlib import Path

HERE = Path(__file__).parent

for script in sorted(HERE.glob("with_*.py")):
    if script.stem not in ("with_all", "with_nothing", "with_demo"):
        runpy.run_path(str(script), run_name=script.stem)
