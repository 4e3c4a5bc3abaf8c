"""Artifact delivery: what the server that offers models and the devices that fetch them share."""
