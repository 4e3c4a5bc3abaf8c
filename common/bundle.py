"""The check that a Flower run asks for the fedhead that is installed here.

Flower hands each run's app as a bundle from the operator to the server and the devices, and would
install and run the bundle's code. A deployment runs the code that its owners installed instead,
and only for a run that asks for exactly that version. So both sides mean the same by a message.
"""

from __future__ import annotations

from importlib.metadata import version

from common.errors import RunError

__all__ = ["NAME", "PUBLISHER", "check_claim", "installed_version"]

PUBLISHER = NAME = "fedhead"
_LONGEST_SHOWN = 80


def installed_version() -> str:
    """The version of the fedhead that is installed here."""
    return version("fedhead")


def check_claim(app: str, asked: str) -> None:
    """Make sure that a run asks for the installed fedhead.

    Args:
        app: publisher and name that the run claims, Flower's ``fab_id``; not to be trusted.
        asked: the version that it claims, ``fab_version``; likewise.

    Raises:
        RunError: it asks for something else. The line names what it asks for and what is
            installed.

    >>> check_claim("fedhead/fedhead", installed_version())
    >>> check_claim("stranger/app", "1.0.0")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    common.errors.RunError: the run asks for stranger/app 1.0.0, and only fedhead/fedhead ... is...
    """
    here = installed_version()
    if (app, asked) != (f"{PUBLISHER}/{NAME}", here):
        raise RunError(
            f"the run asks for {_shown(app)} {_shown(asked)}, and only {PUBLISHER}/{NAME} {here} "
            "is installed here: nothing else runs"
        )


def _shown(text: str) -> str:
    """Untrusted text, fit for a log: short, on one line, without control characters."""
    short = text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
    return short if short.isascii() and short.isprintable() else ascii(short)
