"""What Wattfare's middleware and service cost, next to what can be had without them.

``python -m benchmarks`` runs every row of the table in RESULTS.md; see README.md.
"""
