"""The part that runs on a device, or simulates many devices."""
