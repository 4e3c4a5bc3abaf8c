"""A fleet of phones on one machine, which drives a real gateway: ``fedhead fleet-simulate``."""
