"""Run every Go fuzz target for a while. Each package is compiled once, for all of its targets; a failing input is left
in the package's testdata/fuzz, where `go test` finds it from then on."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODULE = Path(__file__).resolve().parents[1] / "go"


def targets() -> dict[Path, list[str]]:
    found: dict[Path, list[str]] = {}
    for path in sorted(MODULE.rglob("*_test.go")):
        names = re.findall(r"^func (Fuzz\w+)", path.read_text(), re.MULTILINE)
        found.setdefault(path.parent, []).extend(names)
    return {package: names for package, names in found.items() if names}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--go", default="go", help="the go command")
    parser.add_argument("--time", default="5s", help="how long to try each target, for example 5s")
    options = parser.parse_args()
    environment = {**os.environ, "GOTOOLCHAIN": "local"}
    told = subprocess.run(
        [options.go, "env", "GOCACHE", "GOROOT"],
        cwd=MODULE,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    cache, root = told.splitlines()
    # As `go test` does for the tests it runs: some build programs.
    environment["PATH"] = os.pathsep.join([str(Path(root) / "bin"), environment["PATH"]])
    failed = []
    with tempfile.TemporaryDirectory(prefix="ollmlx-fuzz-") as directory:
        for package, names in targets().items():
            name = package.relative_to(MODULE).as_posix()
            binary = Path(directory) / name.replace("/", "-")
            began = time.monotonic()
            build = [options.go, "test", "-c", "-fuzz=.", "-o", str(binary), f"./{name}"]
            subprocess.run(build, cwd=MODULE, env=environment, check=True)
            print(f"{name}: compiled in {time.monotonic() - began:.0f} s", flush=True)
            for target in names:
                corpus = Path(cache) / "fuzz" / name
                run = [binary, "-test.run=^$", f"-test.fuzz=^{target}$", f"-test.fuzztime={options.time}"]
                done = subprocess.run(
                    [*run, f"-test.fuzzcachedir={corpus}"],
                    cwd=package,
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
                tried = re.findall(r"execs: (\d+)", done.stdout) or ["0"]
                print(f"  {target}: {tried[-1]} inputs", flush=True)
                # Where time runs out while a worker starts, Go takes that for a failure without an input.
                late = "context deadline exceeded" in done.stdout and "Failing input" not in done.stdout
                if done.returncode and not late:
                    print(done.stdout, file=sys.stderr)
                    failed.append(target)
    if failed:
        print("failed:", ", ".join(failed), file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
