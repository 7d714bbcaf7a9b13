"""Feeds generated input to every reader of foreign data: ``python -m fuzz --help``, with ``tests``
in PYTHONPATH, or ``make fuzz``."""
