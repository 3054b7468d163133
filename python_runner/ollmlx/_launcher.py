"""The `ollmlx` command: replace this process by the bundled Go program.

It stands between the user's shell and every command, so it imports nothing beyond what the interpreter has
loaded already. `execv` keeps the process id, so signals and exit codes need no forwarding.
"""

import os
import sys

BINARY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_bin", "ollmlx")  # noqa: PTH100,PTH118,PTH120

# As a shell has it: the command was found but cannot be run, and the command was not found.
EXIT_CANNOT_RUN = 126
EXIT_NOT_FOUND = 127


def main() -> int:
    # The host starts its runners with the interpreter that has MLX: this one, unless the user says otherwise.
    if not os.environ.get("OLLMLX_PYTHON"):
        os.environ["OLLMLX_PYTHON"] = sys.executable
    try:
        os.execv(BINARY, ["ollmlx", *sys.argv[1:]])
    except FileNotFoundError:
        print(
            f"ollmlx: the server program is missing ({BINARY}).\n"
            "It is compiled when the package is built; in a source tree run `make build`,"
            " otherwise `pip install --force-reinstall --no-deps ollmlx`.",
            file=sys.stderr,
        )
        return EXIT_NOT_FOUND
    except OSError as error:
        print(
            f"ollmlx: cannot start {BINARY}: {error.strerror}.\n"
            "The installed wheel may be for another kind of machine;"
            " run `pip install --force-reinstall --no-deps ollmlx`.",
            file=sys.stderr,
        )
        return EXIT_CANNOT_RUN
