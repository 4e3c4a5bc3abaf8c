"""The section on how arrays become bytes in messages."""

from __future__ import annotations

from common.toml_model import Section

__all__ = ["CodecConfig"]


class CodecConfig(Section):
    """[codec]: how arrays become bytes in messages."""

    up: str = ""
    """Of what clients send: none; int8 (8 bits a number, a scale a row); drive (1 bit); eden
    (2 bits); int8-shared (8 bits in one step for all clients, chosen by the server, for sums that
    nobody reads); gram-int8 (of the statistics that closed forms need; the others are of what
    training gives, and leave a first round of statistics as it is); or one of your own. Empty: the
    strategy's own, which is none for all of fedhead's. A strategy refuses those that do not suit
    it."""
    down: str = ""
    """Of the head's change that clients are sent for training: int8, drive, eden, or one of your
    own for floats. With none, heads are whole and exact; empty: likewise. Evaluation, and the
    personal heads that are made after the last round, have the exact head in any case."""
