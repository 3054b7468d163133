"""Every public method of the clients is called by a test, or left out for a reason: a method that a new version brings
fails here until somebody has decided about it. The tests of Ollama's Go client do the same beside the server."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import anthropic
import ollama
import openai
import pytest

from tests.clients import test_ollama_js
from tests.clients.test_ollama_js import script as script  # a fixture

CLOUD = "asks ollama.com, not a local server"
STORED = "asks for what the server would have to store; the server says that it keeps nothing"
SPEECH = "speech; the engine has no speech models, and the server says so"
IMAGES = "image generation; the engine has no image models, and the server says so"
PLATFORM = "manages an account on the vendor's platform"
TRANSPORT = "part of the client itself; every other method goes through it"
VENDOR = "a service of the vendor's platform that local servers do not have"

# Which call in which file tests a method. An asynchronous client has the same methods; both are called.
TESTED = {
    ollama.Client: r"\bclient\.{}\(",
    openai.OpenAI: r"\bclient\.{}\(|\bclient\.{}\b[,:]",
    anthropic.Anthropic: r"\bclient\.{}\(|\bclient\.{}\b[,:]",
}
FILES = {
    ollama.Client: ["test_ollama_python.py"],
    openai.OpenAI: ["test_openai.py"],
    anthropic.Anthropic: ["test_anthropic.py"],
}
# Methods, or all below a resource, that no test calls, and why.
LEFT_OUT = {
    ollama.Client: {"web_search": CLOUD, "web_fetch": CLOUD, "close": TRANSPORT, "systemone": VENDOR},
    openai.OpenAI: {
        "admin": PLATFORM,
        "audio": SPEECH,
        "batches": STORED,
        "beta": STORED,
        "chat.completions.delete": STORED,
        "chat.completions.list": STORED,
        "chat.completions.messages": STORED,
        "chat.completions.retrieve": STORED,
        "chat.completions.update": STORED,
        "containers": VENDOR,
        "content_provenance_checks": VENDOR,
        "conversations": STORED,
        "decisions": VENDOR,
        "evals": PLATFORM,
        "files": STORED,
        "fine_tuning": PLATFORM,
        "images": IMAGES,
        "live": SPEECH,
        "models.delete": "deletes a model that was tuned on the platform; here that is DELETE /api/delete",
        "moderations": VENDOR,
        "realtime": SPEECH,
        "responses.cancel": STORED,
        "responses.compact": VENDOR,
        "responses.connect": "a web socket; the server speaks HTTP with server-sent events",
        "responses.delete": STORED,
        "responses.input_items": STORED,
        "responses.retrieve": STORED,
        "safety": PLATFORM,
        "skills": STORED,
        "uploads": STORED,
        "vector_stores": STORED,
        "videos": IMAGES,
        "webhooks": VENDOR,
    },
    anthropic.Anthropic: {
        "beta.agents": STORED,
        "beta.compliance": PLATFORM,
        "beta.deployment_runs": PLATFORM,
        "beta.deployments": PLATFORM,
        "beta.dreams": STORED,
        "beta.environments": PLATFORM,
        "beta.files": STORED,
        "beta.memory_stores": STORED,
        "beta.messages.batches": STORED,
        "beta.organization": PLATFORM,
        "beta.sessions": STORED,
        "beta.skills": STORED,
        "beta.tunnels": PLATFORM,
        "beta.user_profiles": PLATFORM,
        "beta.vaults": PLATFORM,
        "beta.webhooks": VENDOR,
        "files": STORED,
        "messages.batches": STORED,
        "organization": PLATFORM,
        "skills": STORED,
        "user_profiles": PLATFORM,
    },
}
CLIENT_ITSELF = set(
    "close copy delete get get_api_list is_closed patch platform_headers post put request with_middleware "
    "with_options".split()
)


def methods(resource: Any, prefix: str = "") -> Iterator[str]:
    """The paths of all public methods below a resource of OpenAI's or Anthropic's client."""
    for name in dir(type(resource)):
        attribute = inspect.getattr_static(type(resource), name)
        if name.startswith(("_", "with_raw_response", "with_streaming_response")):
            continue
        if inspect.isfunction(attribute):
            yield prefix + name
        elif isinstance(attribute, (cached_property, property)):
            below = getattr(resource, name)
            if ".resources." in type(below).__module__:
                yield from methods(below, f"{prefix}{name}.")


def undecided(client: Any, names: set[str]) -> tuple[set[str], set[str]]:
    """Methods that are neither called nor left out, and reasons for what does not exist."""
    text = "".join((Path(__file__).parent / file).read_text() for file in FILES[client])
    called = {n for n in names if re.search(TESTED[client].replace("{}", re.escape(n)), text)}
    excused = {n: r for n in names for r in LEFT_OUT[client] if n == r or n.startswith(f"{r}.")}
    return names - called - excused.keys(), set(LEFT_OUT[client]) - set(excused.values())


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_ollama_python(asynchronous: bool) -> None:
    client = ollama.AsyncClient if asynchronous else ollama.Client
    names = {name for name, _ in inspect.getmembers(client, inspect.isfunction) if name[0] != "_"}
    assert undecided(ollama.Client, names) == (set(), set())


def test_openai() -> None:
    names = set(methods(openai.OpenAI(api_key="none"))) - CLIENT_ITSELF
    assert {"chat.completions.create", "responses.stream"} < names
    assert undecided(openai.OpenAI, names) == (set(), set())


def test_anthropic() -> None:
    names = set(methods(anthropic.Anthropic(api_key="none"))) - CLIENT_ITSELF
    assert {"messages.create", "beta.messages.tool_runner"} < names
    assert undecided(anthropic.Anthropic, names) == (set(), set())


@test_ollama_js.pytestmark
def test_ollama_javascript(script: Path) -> None:
    listing = """
        import { Ollama } from 'ollama'
        const names = new Set()
        for (let p = Ollama.prototype; p !== Object.prototype; p = Object.getPrototypeOf(p))
            Object.getOwnPropertyNames(p).forEach((name) => names.add(name))
        console.log(JSON.stringify([...names]))
    """
    done = subprocess.run(
        ["node", "--input-type=module", "-e", listing], cwd=script.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    names = set(json.loads(done.stdout)) - {"constructor"}
    text = script.read_text()
    called = {name for name in names if re.search(rf"\b(client|stream)\.{name}\(", text)}
    left_out = {
        "webSearch": CLOUD,
        "webFetch": CLOUD,
        "systemone": VENDOR,
        "encodeImage": TRANSPORT,
        "fileExists": TRANSPORT,
        "processStreamableRequest": TRANSPORT,
    }
    assert names - called == left_out.keys()
