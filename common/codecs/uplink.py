"""How a round's clients encode their updates, and how the server decodes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from common.codecs import NONE, decode_array, find_codec
from common.codecs.codec import Array, Codec
from common.fields import FIELDS, field_layouts
from common.seeding import Purpose, stream_state
from common.types import ClientPlan, Layout

__all__ = ["Uplink", "decode_sum", "encode_sum"]


@dataclass(frozen=True)
class Uplink:
    """One round's encoding; client and server make it from the same request.

    Attributes:
        plan: the round's plan.
        num_classes: K.
        num_features: d.
        seed: the run's seed.
        round_number: the round's number.
    """

    plan: ClientPlan
    num_classes: int
    num_features: int
    seed: int
    round_number: int

    @property
    def codec(self) -> Codec:
        return find_codec(self.plan.uplink)

    @property
    def layouts(self) -> dict[str, Layout]:
        """Layouts of one client's fields."""
        return field_layouts(self.plan.fields, self.num_classes, self.num_features)

    def is_summed(self, num_clients: int) -> bool:
        """Whether a node that may send sums sends a sum for this number of clients.

        A lossy codec encodes each client's fields, and a sum would undo that.
        """
        return num_clients > 1 or self.codec.transparent

    def encode(self, client: int, fields: Mapping[str, Array]) -> dict[str, bytes]:
        """One client's fields, encoded."""
        return {
            name: self._codec_of(name).encode(fields[name], self._seed(client, i))
            for i, name in enumerate(self.plan.fields)
        }

    def decode(self, client: int, payloads: Mapping[str, bytes]) -> dict[str, Array]:
        """The reverse of ``encode``.

        Raises:
            ReplyError: names the field whose bytes are not what the plan asked for.
        """
        layouts = self.layouts
        return {
            name: decode_array(
                self._codec_of(name), payloads[name], layouts[name], self._seed(client, i), name
            )
            for i, name in enumerate(self.plan.fields)
        }

    def lengths(self, integer_bytes: int = 4) -> tuple[tuple[str, int], ...]:
        """Bytes that each field of any client takes with a transparent codec.

        Args:
            integer_bytes: size of the statistics' integers, 4 or 8.
        """
        return tuple(
            (name, _length(self._codec_of(name), layout, integer_bytes))
            for name, layout in self.layouts.items()
        )

    def _codec_of(self, name: str) -> Codec:
        return NONE if FIELDS[name].exact else self.codec

    def _seed(self, client: int, position: int) -> int:
        return stream_state(self.seed, Purpose.UPLINK, self.round_number, client, position)


@lru_cache(maxsize=64)
def _length(codec: Codec, layout: Layout, integer_bytes: int) -> int:
    dtype = np.float32 if layout.kind == "f" else np.dtype(f"u{integer_bytes}")
    return len(codec.encode(np.zeros(layout.shape, dtype), 0))


def encode_sum(total: Mapping[str, Array]) -> dict[str, bytes]:
    """A sum of several clients' fields. It needs no codec, because only simulations send sums."""
    return {name: NONE.encode(array, 0) for name, array in total.items()}


def decode_sum(payloads: Mapping[str, bytes], layouts: Mapping[str, Layout]) -> dict[str, Array]:
    """The reverse of ``encode_sum``.

    Raises:
        ReplyError: names the field whose bytes are not what the plan asked for.
    """
    return {
        name: decode_array(NONE, payloads[name], layout, 0, name)
        for name, layout in layouts.items()
    }
