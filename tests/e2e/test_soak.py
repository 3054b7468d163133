"""A short run of the soak that scripts/soak.py makes as long as one likes."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from scripts.soak import Soak
from tests.support.server import REPOSITORY


@pytest.mark.slow
def test_mixed_load_loses_nothing_and_leaves_nothing() -> None:
    done = subprocess.run(
        # Too short to get warm: growth is for the long run to see.
        [sys.executable, "-m", "scripts.soak", "--seconds", "20", "--slack", "120"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "lost or wrong: 0, runners that died: 0, grown: nothing" in done.stdout


def test_a_runner_that_is_gone_for_a_moment_is_no_end_of_the_soak(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([5.0, None, 7.0, 6.0])

    def look(self: Soak) -> dict[str, float]:
        [size] = [s for s in [next(looks, 1.0)] if s is not None]
        return {"runner": size}

    monkeypatch.setattr(Soak, "memory", look)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    assert Soak(None, 1).watch(time.monotonic() + 0.2) == {"runner": 7.0}
