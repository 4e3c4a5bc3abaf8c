"""Signed artifacts: the statement that is signed, and the keys whose signatures are valid.

Signing itself needs the private key and is in ``simulations/deploy/signing_key.py``. Neither a
device nor a server has that key.
"""
