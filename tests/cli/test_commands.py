"""The command line against a really running server, and servers that commands start for themselves."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.server import BINARY, Server, free_port
from tests.support.tiny_models import make_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


def test_answer_of_the_demo_model(server: Server) -> None:
    done = server.cli("run", "demo", "--think=false", "--verbose", "What is ollmlx?")
    assert done.returncode == 0, done.stderr
    assert "MLX" in done.stdout
    assert done.stdout.endswith("\n\n")
    assert "\x1b" not in done.stdout + done.stderr, "no control sequences without a terminal"
    assert re.search(r"^eval rate: +\d+\.\d\d tokens/s$", done.stderr, re.MULTILINE)


def test_piped_text_is_the_prompt(server: Server) -> None:
    done = server.cli("run", "--think=false", stdin="What is ollmlx?")
    assert done.returncode == 0, done.stderr
    assert "MLX" in done.stdout


def test_life_of_a_model(server: Server, tmp_path: Path) -> None:
    directory = make_model(tmp_path / "tiny", "llama")
    (tmp_path / "Modelfile").write_text("FROM ./tiny\nPARAMETER num_predict 3\nSYSTEM Be brief.\n")
    created = server.cli("create", "mine", "-f", str(tmp_path / "Modelfile"))
    assert created.returncode == 0, created.stderr
    assert created.stderr.endswith("success\n")
    assert directory.exists()

    assert "mine:latest" in server.cli("list").stdout
    assert "num_predict    3" in server.cli("show", "mine").stdout
    assert server.cli("run", "MINE", "hi").returncode == 0
    row = next(line for line in server.cli("ps").stdout.splitlines() if line.startswith("mine:latest"))
    assert "100% CPU" in row or "100% GPU" in row
    assert server.cli("cp", "mine", "copy:v1").stdout == "copied 'mine' to 'copy:v1'\n"
    assert server.cli("stop", "mine").returncode == 0
    wait_until(lambda: "mine" not in server.cli("ps").stdout, "the model is unloaded")
    assert server.cli("rm", "mine", "copy:v1").stdout == "deleted 'mine'\ndeleted 'copy:v1'\n"
    assert "mine" not in server.cli("list").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "nope"), "model 'nope' not found"),
        (("stop", "nope"), 'couldn\'t find model "nope" to stop'),
        (("rm", "nope"), "model 'nope' not found"),
        (("cp", "nope", "x"), 'model "nope" not found'),
        (("create", "x", "-f", "/no/such/file"), "wasn't found"),
    ],
)
def test_errors_end_with_one_sentence_and_code_1(
    server: Server, arguments: tuple[str, ...], message: str
) -> None:
    done = server.cli(*arguments)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("Error: ")
    assert message in line


def test_interrupt_ends_an_answer_and_frees_the_model(server: Server, tmp_path: Path) -> None:
    server.create("endless", make_model(tmp_path / "endless", "llama", endless=True))
    command = [BINARY, "run", "endless", "go on for ever"]
    process = subprocess.Popen(
        command,
        env=server.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    assert b"Error" not in process.communicate()[1]
    assert server.cli("stop", "endless").returncode == 0


class Terminal:
    """A command on a pseudo-terminal."""

    def __init__(self, *arguments: str, environment: dict[str, str]) -> None:
        self.seen = ""
        pid, self._fd = pty.fork()
        if pid == 0:
            os.execve(BINARY, ["ollmlx", *arguments], environment | {"TERM": "xterm"})
        self.process = psutil.Process(pid)
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def expect(self, pattern: str, seconds: float = 120) -> str:
        """Wait for a pattern in what was printed since the last one; return what it matched."""
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self.seen)):
            remaining = deadline - time.monotonic()
            assert remaining > 0, f"no {pattern!r} in {self.seen[-1000:]!r}"
            ready, _, _ = select.select([self._fd], [], [], remaining)
            if ready:
                try:
                    self.seen += os.read(self._fd, 4096).decode(errors="replace")
                except OSError as error:  # the command has ended
                    raise AssertionError(f"no {pattern!r} in {self.seen[-1000:]!r}") from error
        self.seen = self.seen[found.end() :]
        return found.group()

    def wait(self) -> int:
        with contextlib.suppress(OSError):  # until the command has ended
            while select.select([self._fd], [], [], 30)[0] and os.read(self._fd, 4096):
                pass
        return os.waitstatus_to_exitcode(os.waitpid(self.process.pid, 0)[1])


def test_conversation_on_a_terminal(server: Server) -> None:
    settings = {"HOME": str(server.root), "OLLAMA_EDITOR": "printf '/show\\nsystem' >"}
    terminal = Terminal("run", "demo", "--think=false", environment=server.environment | settings)
    terminal.expect(">>> ")
    terminal.type("What is ollmlx?\r")
    terminal.expect(r"MLX[^>]*>>> ")
    terminal.type("/set system You are brief.\r")
    terminal.expect("Set system message.")
    terminal.type("/show system\r")
    terminal.expect("You are brief.\r\n")
    terminal.type("\x1b[A")  # up: the line before
    terminal.expect("/show system")
    terminal.type("\x01\x0bset think low\x01/\r")  # to the beginning, delete, type, to the beginning
    terminal.expect("Set 'think' mode to 'low'.")
    terminal.type("some text\x07")  # Ctrl-g: an editor, which puts something else there
    terminal.expect("system")
    terminal.type("\x7f" * 6 + "\x7f system\r")
    terminal.expect("You are brief.\r\n")
    terminal.type('"""one\rtwo"""\r')
    terminal.expect(r"\.\.\. (.|\n)*Send a message")
    terminal.type("/nonsense\r")
    terminal.expect("unknown command '/nonsense'")
    terminal.expect("Send a message")
    terminal.type("\x03")
    terminal.expect(r"Use Ctrl \+ d or /bye to exit\.")
    terminal.type("/bye\r")
    assert terminal.wait() == 0


def test_interrupt_in_a_conversation_ends_only_the_answer(server: Server, tmp_path: Path) -> None:
    server.create("endless2", make_model(tmp_path / "endless2", "llama", endless=True))
    environment = server.environment | {"HOME": str(server.root)}
    terminal = Terminal("run", "endless2", "--verbose", environment=environment)
    terminal.expect(">>> ")
    terminal.type("go on\r")
    terminal.expect(r"go on\r\n")
    terminal.expect(r"(.|\n){300}")
    # While an answer is printed the terminal is not in raw mode, so the key is a signal to its processes.
    terminal.type("\x03")
    rest = terminal.expect(r"(.|\n)*Send a message")
    assert "eval rate" not in rest, "an answer that was not ended has timings"
    terminal.type("/bye\r")
    assert terminal.wait() == 0


def alone(tmp_path: Path, **environment: str) -> dict[str, str]:
    """Settings of a machine where no server runs."""
    server = Server(**environment)
    server.environment |= {"OLLAMA_MODELS": str(tmp_path / "models"), "TMPDIR": str(tmp_path)}
    return server.environment


def children(tmp_path: Path) -> list[psutil.Process]:
    """Servers and runners of the store in this directory."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("OLLAMA_MODELS", "").startswith(str(tmp_path)):
                found.append(process)
    return found


def test_run_starts_a_server_and_takes_it_down(tmp_path: Path) -> None:
    done = subprocess.run(
        [BINARY, "run", "demo", "--think=false", "Hello!"],
        env=alone(tmp_path), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "starting one until this command ends" in done.stderr
    assert children(tmp_path) == []
    assert list(tmp_path.glob("ollmlx-*")) == [], "the runtime directory is gone"


def test_killed_run_leaves_no_server_and_no_runner(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [BINARY, "run", "demo", "Tell me a long story"],
        env=alone(tmp_path), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout
    try:
        assert process.stdout.read(1), "the answer has begun, so server and runner are there"
        process.send_signal(signal.SIGSTOP)  # and stay, however long this machine takes to list its processes
        assert len(children(tmp_path)) >= 3
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: children(tmp_path) == [], "server and runner are gone", 10)


def test_run_says_why_its_server_did_not_start(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file where the directory should be")
    done = subprocess.run(
        [BINARY, "run", "demo", "hi"],
        env=alone(tmp_path), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "the server ended while starting" in done.stderr
    assert "OLLAMA_MODELS" in done.stderr


def serve(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BINARY, "serve"],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_second_server_on_a_port_or_a_store_is_refused(server: Server, tmp_path: Path) -> None:
    port = serve(server.environment)
    assert port.returncode == 1
    assert "is in use" in port.stderr
    assert "OLLAMA_HOST" in port.stderr
    store = serve(server.environment | {"OLLAMA_HOST": f"127.0.0.1:{free_port()}"})
    assert store.returncode == 1
    assert "another ollmlx server" in store.stderr
    assert server.http.get("/").status_code == 200


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"OLLAMA_HOST": "https://127.0.0.1:0"}, "the server speaks plain http"),
        ({"OLLAMA_HOST": "host:port"}, 'OLLAMA_HOST="host:port"'),
        ({"OLLMLX_PYTHON": "/no/such/python"}, "OLLMLX_PYTHON=/no/such/python"),
        ({"OLLMLX_LIFELINE_FD": "77"}, "OLLMLX_LIFELINE_FD=77 is not an open file"),
    ],
)
def test_bad_settings_stop_the_server_with_a_sentence(
    tmp_path: Path, setting: dict[str, str], message: str
) -> None:
    done = serve(alone(tmp_path) | setting)
    assert done.returncode == 1
    assert message in done.stderr


def test_server_logs_json_and_warns_of_values_it_ignores(tmp_path: Path) -> None:
    with Server(OLLMLX_LOG_FORMAT="json", OLLAMA_MAX_QUEUE="many") as server:
        assert server.stop() == 0
        records = [json.loads(line) for line in server.log.splitlines()]
    assert any(record["level"] == "WARN" and "OLLAMA_MAX_QUEUE" in record["msg"] for record in records)
    [listening] = [record for record in records if record["msg"] == "listening"]
    assert listening["address"] == server.url.removeprefix("http://")
    assert records[-1]["msg"] == "stopped"


def test_doctor_sees_the_server(server: Server) -> None:
    report = json.loads(server.cli("doctor", "--json").stdout)
    assert report["host"]["server"].startswith("running")
    assert report["host"]["problems"] == []
    assert report["python"]["facts"]["device"]
