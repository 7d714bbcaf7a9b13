"""Measures the cost of Wattfare's middleware and service, compared with servers without them.

``python -m benchmarks`` runs all rows of RESULTS.md. See README.md.
"""
