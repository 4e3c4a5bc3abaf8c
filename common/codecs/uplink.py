"""How a round's clients encode their updates, and how the server decodes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from common.codecs import NONE, decode_array, find_codec
from common.codecs.codec import Array, Codec, Through
from common.fields import FIELDS, field_layouts
from common.seeding import Purpose, stream_state, stream_states
from common.types import ClientPlan, IntArray, Layout

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

    @property
    def is_transparent(self) -> bool:
        """Whether every field arrives as it is."""
        return all(self._codec_of(name).transparent for name in self.plan.fields)

    @property
    def is_batched(self) -> bool:
        """Whether what the server decodes can be told without each client's bytes."""
        codecs = [self._codec_of(name) for name in self.plan.fields]
        return all(c.transparent or (c.sized and c.through is not None) for c in codecs)

    def is_summed(self, num_clients: int) -> bool:
        """Whether a node that may send sums sends a sum for this number of clients.

        A lossy codec encodes each client's fields, and a sum would undo that.
        """
        return num_clients > 1 or self.is_transparent

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

    def through(
        self, clients: IntArray, fields: Mapping[str, Array], compiled: Mapping[str, Through]
    ) -> dict[str, Array]:
        """What ``decode`` gives of what ``encode`` makes, bit for bit, for clients side by side.

        Args:
            clients: int64 (m,), ids.
            fields: each (m, ...); only where the plan ``is_batched``.
            compiled: by a codec's name, what takes the place of its ``through``.
        """
        out = {}
        for i, name in enumerate(self.plan.fields):
            codec = self._codec_of(name)
            through = compiled.get(codec.name, codec.through)
            seeds = stream_states(self._seed_of_round, clients, i)
            out[name] = fields[name] if through is None else through(fields[name], seeds)
        return out

    def lengths(self, integer_bytes: int = 4) -> tuple[tuple[str, int], ...]:
        """Bytes that each field of any client takes, where codecs are transparent or sized.

        Args:
            integer_bytes: size of the statistics' integers, 4 or 8.
        """
        return tuple(
            (name, _length(self._codec_of(name), layout, integer_bytes))
            for name, layout in self.layouts.items()
        )

    def _codec_of(self, name: str) -> Codec:
        field, codec = FIELDS[name], self.codec
        return NONE if field.exact or field.kind not in codec.carries else codec

    def _seed(self, client: int, position: int) -> int:
        return stream_state(self.seed, Purpose.UPLINK, self.round_number, client, position)

    @property
    def _seed_of_round(self) -> int:
        return stream_state(self.seed, Purpose.UPLINK, self.round_number)


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
