"""What stands beside ours: bare pass-throughs, and gateways by others in folders of their own.

A bare pass-through reads the body, sends it on with the app's credentials, and streams the bytes
of the answer back. It does nothing else: nobody is signed in, nothing is checked, bounded, counted,
retried, logged or cleaned up.
"""
