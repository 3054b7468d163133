"""A step that never ends ends the process, with stacks in the log; one that is slow does not."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import sys, time
from ollmlx.runner import logs
from ollmlx.runner.mlx.watchdog import Watchdog
logs.setup()
watchdog = Watchdog()
watchdog.start()
for _ in range(4):
    with watchdog:
        time.sleep(float(sys.argv[1]))
print("went on")
"""


def run(step: float, limit: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OLLMLX_STEP_TIMEOUT": limit}
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, str(step)], env=environment, capture_output=True, text=True, timeout=60
    )


def test_a_hung_step_ends_the_process() -> None:
    done = run(step=30, limit="0.5")
    assert done.returncode == 70
    assert "has not ended" in done.stderr
    assert "time.sleep" in done.stderr or "<string>" in done.stderr, "where it hangs is in the log"


@pytest.mark.parametrize("limit", ["5", "0", "", "nonsense"])
def test_a_slow_step_does_not(limit: str) -> None:
    done = run(step=0.2, limit=limit)
    assert (done.returncode, done.stdout) == (0, "went on\n")
