"""A federation on real devices: its keys, its folder, and Flower's SuperLink and SuperNode."""

VALID_DAYS = 365
"""Default days for which a server's certificate or a signature is valid."""

MOST_DAYS = 3650
"""Days for which an authority is valid, and the most for a certificate or a signature."""
