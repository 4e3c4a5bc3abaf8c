"""The section on how arrays become bytes in messages."""

from __future__ import annotations

from common.toml_model import Section

__all__ = ["CodecConfig"]


class CodecConfig(Section):
    """[codec]: how arrays become bytes in messages."""

    up: str = ""
    """Of what clients send; empty: the strategy's own, which is none for all of fedhead's."""
    down: str = ""
    """Of the head's change that clients are sent; empty: likewise. With none, heads are whole."""
