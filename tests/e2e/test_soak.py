"""A short run of the soak that scripts/soak.py makes as long as one likes."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
