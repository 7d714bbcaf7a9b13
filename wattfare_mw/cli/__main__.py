"""``python -m wattfare_mw.cli`` is ``wattfare``."""

from . import main

main()
