"""``fedhead cache``."""

import json
import os
from pathlib import Path
from unittest.mock import ANY

import pytest

from common.errors import RunError
from fedhead.cli.cache import cache


def test_fedhead_cache_shows_and_makes_room(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path /= "[bold]"  # is no markup
    old = tmp_path / "features" / ("a" * 64)
    old.mkdir(parents=True)
    (old / "features.npy").write_bytes(bytes(3_000_000))
    os.utime(old, (10**9, 10**9))
    (tmp_path / "clients" / "1a2b").mkdir(parents=True)
    cache(tmp_path, prune_=False, days=30, json_=True)
    assert json.loads(capsys.readouterr().out)["kinds"] == [
        {"kind": "clients", "entries": 1, "bytes": 0, "used": ANY, "made-again": False},
        {"kind": "features", "entries": 1, "bytes": 3_000_000, "used": ANY, "made-again": True},
    ]
    cache(tmp_path, prune_=True, days=30, json_=False)
    shown = capsys.readouterr().out
    assert "removed: 1 entries, 3.0 MB" in shown
    assert "[bold]" in "".join(shown.split())
    assert not old.exists()
    assert (tmp_path / "clients" / "1a2b").exists()
    with pytest.raises(RunError, match="nowhere: no such folder"):
        cache(tmp_path / "nowhere", prune_=False, days=30, json_=False)
