"""A federation on real devices: its keys, its folder, and Flower's own SuperLink and SuperNode."""
