"""When the phones of a fleet are there: time zones in a day that passes faster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from common.errors import ConfigError
from common.words import unknown

__all__ = ["PROFILES", "Profile", "Zone", "find_profile"]


@dataclass(frozen=True)
class Zone:
    """Phones that are awake at the same time of the day.

    Attributes:
        share: of all phones, above 0; shares need not add up to 1.
        starts: the part of the day at which they wake up, in [0, 1).
        awake: the part of the day for which they are there, in (0, 1].
        haste: how many times as often as it is told a phone calls; unless it is 1, its calls are
            not held either.
    """

    share: float = 1.0
    starts: float = 0.0
    awake: float = 1.0
    haste: float = 1.0


@dataclass(frozen=True)
class Profile:
    """The habits of a fleet.

    Attributes:
        zones: at least one.
        day_seconds: real seconds that a day takes.
    """

    zones: tuple[Zone, ...] = (Zone(),)
    day_seconds: float = 120.0

    def zone_of(self, phone: int, phones: int) -> int:
        """The zone of a phone: neighbours are in the same one.

        >>> two = Profile((Zone(share=3), Zone(share=1)))
        >>> [two.zone_of(phone, 8) for phone in range(8)]
        [0, 0, 0, 0, 0, 0, 1, 1]
        """
        total, begins = sum(zone.share for zone in self.zones), 0.0
        for number, zone in enumerate(self.zones):
            begins += zone.share / total
            if phone + 0.5 < begins * phones:
                return number
        return len(self.zones) - 1

    def seconds_until_awake(self, zone: Zone, shift: float, now: float) -> float:
        """Seconds until a phone is there; 0: it is.

        Args:
            zone: its zone.
            shift: part of the day by which it is later than its zone.
            now: seconds since the fleet's beginning.

        >>> night = Zone(starts=0.5, awake=0.25)
        >>> [Profile(day_seconds=100).seconds_until_awake(night, 0.0, t) for t in (0, 60, 80)]
        [50.0, 0.0, 70.0]
        """
        if zone.awake >= 1:
            return 0.0
        hour = (now / self.day_seconds - zone.starts - shift) % 1.0
        return 0.0 if hour < zone.awake else (1.0 - hour) * self.day_seconds


_ZONES = 8
_AWAKE = 0.3  # of a day: a phone at its charger at night

PROFILES: Mapping[str, Profile] = {
    "always": Profile(),
    "diurnal": Profile(tuple(Zone(starts=i / _ZONES, awake=_AWAKE) for i in range(_ZONES))),
    "greedy": Profile((Zone(share=19), Zone(share=1, haste=20.0))),
}
"""By name: all phones are there all the time; eight time zones, each awake for 30 % of a day; a
phone in twenty calls twenty times as often as it is told."""


def find_profile(name: str) -> Profile:
    """The profile of a name.

    Raises:
        ConfigError: there is none; names the nearest.
    """
    if name not in PROFILES:
        raise ConfigError([unknown("profile", name, PROFILES)])
    return PROFILES[name]
