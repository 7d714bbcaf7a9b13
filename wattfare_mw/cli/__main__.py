"""``python -m wattfare_mw.cli`` runs ``wattfare``."""

from . import main

main()
