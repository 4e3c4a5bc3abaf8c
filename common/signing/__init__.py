"""Signed artifacts: the statement that is signed, and the keys whose signatures hold.

Signing itself, which needs the private key, is in ``simulations/deploy/signing_key.py``: neither a
device nor a server has that.
"""
