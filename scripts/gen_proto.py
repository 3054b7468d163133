"""Generate the Go and Python code of proto/ and check that what is checked in is current.

Both languages come from the protoc inside grpcio-tools, so no system protoc is needed; the Go plugins are
tool dependencies of go/go.mod. grpcio-tools is pinned to the oldest release whose output the supported range of
grpcio and protobuf can load: generated code refuses a runtime older than its generator.

    python scripts/gen_proto.py           # write into go/ and python_runner/
    python scripts/gen_proto.py --check   # exit 1 and name the files that differ
"""

from __future__ import annotations

import argparse
import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# All of one package, so that the generated code of both languages is one package, too.
PROTOS = sorted(str(p.relative_to(ROOT / "proto")) for p in (ROOT / "proto").rglob("*.proto"))
GRPCIO_TOOLS = "1.76.0"

# Where each generated file belongs, relative to the repository.
OUTPUTS = {
    "go": Path("go/internal/runnerpb"),
    "python": Path("python_runner"),
}


def go_plugin(name: str, go: str) -> str:
    """Path of a protoc plugin that go/go.mod pins as a tool; built by Go on first use."""
    out = subprocess.run(
        [go, "tool", "-n", name], cwd=ROOT / "go", check=True, capture_output=True, text=True
    )
    return out.stdout.strip()


def generate(out: Path, go: str) -> list[Path]:
    """Run protoc for both languages into `out`, laid out as in the repository; return the files written."""
    go_out, py_out = out / OUTPUTS["go"], out / OUTPUTS["python"]
    for directory in (go_out, py_out):
        directory.mkdir(parents=True, exist_ok=True)
    module = "github.com/ollmlx/ollmlx/go/internal/runnerpb"
    subprocess.run(
        [
            sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}",
            f"--plugin=protoc-gen-go={go_plugin('protoc-gen-go', go)}",
            f"--plugin=protoc-gen-go-grpc={go_plugin('protoc-gen-go-grpc', go)}",
            f"--go_out={go_out}", f"--go_opt=module={module}",
            f"--go-grpc_out={go_out}", f"--go-grpc_opt=module={module}",
            f"--python_out={py_out}", f"--pyi_out={py_out}", f"--grpc_python_out={py_out}",
            *PROTOS,
        ],
        check=True,
    )  # fmt: skip
    return sorted(p.relative_to(out) for p in out.rglob("*") if p.is_file())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with what is checked in, write nothing")
    parser.add_argument("--go", default=os.environ.get("OLLMLX_GO", "go"), help="the go command to use")
    args = parser.parse_args()

    installed = metadata.version("grpcio-tools")
    if installed != GRPCIO_TOOLS:
        print(f"grpcio-tools {GRPCIO_TOOLS} is needed, {installed} is installed", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as tmp:
        files = generate(Path(tmp), args.go)
        stale = [
            f for f in files if not (ROOT / f).exists() or not filecmp.cmp(Path(tmp) / f, ROOT / f, False)
        ]
        if args.check:
            for f in stale:
                print(f"{f} is not what proto/ generates; run `make proto`", file=sys.stderr)
            return 1 if stale else 0
        for f in stale:
            (ROOT / f).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(tmp) / f, ROOT / f)
            print(f"wrote {f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
