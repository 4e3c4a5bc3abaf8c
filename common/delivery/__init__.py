"""Artifact delivery: the part that the server and the devices that fetch models share."""
