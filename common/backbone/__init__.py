"""The frozen int8 backbone: prepared once on a server, used everywhere.

``spec``, ``content``, ``module`` and ``frozen`` are the device path and never import
torchvision; ``weights``, ``quantize``, ``int8`` and ``prepare`` are for the machine that builds it.
"""
