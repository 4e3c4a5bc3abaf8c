"""A federation on real devices: its keys, its folder, and Flower's own SuperLink and SuperNode."""

VALID_DAYS = 365
"""How long a server's certificate and a signature hold if nothing else is said."""

MOST_DAYS = 3650
"""How long an authority holds, and a signature at most."""
