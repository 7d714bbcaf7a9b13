"""The servers to compare with: bare pass-throughs, and other gateways in separate folders.

A bare pass-through reads the body, sends it on with the app's credentials, and streams the answer
back. It does not authenticate, check, limit, count, retry or log.
"""
