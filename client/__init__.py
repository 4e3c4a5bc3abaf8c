"""What runs on a device, or stands for many of them in a simulation."""
