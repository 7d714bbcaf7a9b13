"""Feeds made-up input to all that reads what others wrote: ``python -m fuzz --help``, with
``tests`` in PYTHONPATH, or ``make fuzz``."""
