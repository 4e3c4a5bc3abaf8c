"""How many files and connections a process may have open at once."""

from __future__ import annotations

__all__ = ["allow_files"]


def allow_files(count: int) -> int:
    """Let this process have so many open, as far as the system allows without its administrator.

    Most systems begin with 1,024, which as many idle connections of strangers use up.

    Returns:
        How many it may have now.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return count
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    endless = resource.RLIM_INFINITY
    if soft == endless or soft >= count:
        return count if soft == endless else soft
    wanted = count if hard == endless else min(count, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted
