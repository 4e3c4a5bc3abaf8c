"""A phone in Python: the reference for phones in other languages, and what tests gateways.

``phone`` and what it needs know the protocol of ``common/phones/phones.proto`` and no model;
``images`` is what trains, on a folder of images. ``docs/phones.md`` describes both.
"""
