"""How phones take part in rounds: the messages of phones.proto and what both sides share."""

__all__ = ["GATEWAY"]

GATEWAY = "gateway"
"""The name under which a deployment knows the gateway's node; no device may have it."""
