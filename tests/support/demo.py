"""What tests ask the demo model, and where it is."""

from __future__ import annotations

from tests.support.server import REPOSITORY

DEMO = REPOSITORY / "python_runner" / "ollmlx" / "models" / "demo"

# A tool that it was trained to call, in OpenAI's form, which is Ollama's too.
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "The city"}},
            "required": ["city"],
        },
    },
}
