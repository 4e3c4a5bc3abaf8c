"""Federated learning of the head of a frozen int8 MobileNet: the front door."""
