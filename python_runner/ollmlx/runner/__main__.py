"""A runner process: `python -m ollmlx.runner --engine mlx --socket PATH` (docs/runner-protocol.md)."""

import os
import sys

from ollmlx import blas
from ollmlx.runner import lifeline

blas.restart_with()

# Before the imports of the rest: an orphan must die even while these run.
try:
    lifeline.start()
except OSError:
    print(
        "python -m ollmlx.runner is started by the ollmlx host, which hands it its lifeline as fd 3; "
        "type `ollmlx serve` or `ollmlx run MODEL` instead",
        file=sys.stderr,
    )
    sys.exit(3)

if __name__ == "__main__":
    from ollmlx.runner.main import main

    code = main()
    # No interpreter teardown: it can block on a compute thread, and nothing here is left to be saved.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
