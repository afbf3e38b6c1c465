"""A visitor's page over HTTP, of a server in another process."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from hyperlora.ui.session import Turn, read_turns
from tests.ui.visitor import shelved


class Caller:
    """A page over HTTP, by its session's name."""

    def __init__(self, url: str, session: str):
        self.url, self.session = f"{url}gradio_api/", session
        functions = httpx.get(f"{url}config", trust_env=False, timeout=300).json()["dependencies"]
        self.functions = {each["api_name"]: each["id"] for each in functions}

    def body(self, handler: str, data: tuple) -> dict:
        return {"fn_index": self.functions[handler], "session_hash": self.session, "data": data}

    @contextmanager
    def asked(self, handler: str, *data: object) -> Iterator[Iterator[dict]]:
        """What the server says, as it comes; leaving it hangs up."""
        joined = httpx.post(f"{self.url}queue/join", json=self.body(handler, data), trust_env=False, timeout=300)
        joined.raise_for_status()
        where = f"{self.url}queue/data?session_hash={self.session}"
        with httpx.stream("GET", where, trust_env=False, timeout=300) as stream:
            lines = stream.iter_lines()
            yield (json.loads(line.removeprefix("data: ")) for line in lines if line)

    def ask(self, handler: str, *data: object) -> tuple[list, list[str]]:
        """-> what it gives in the end, and what it warns of meanwhile."""
        with self.asked(handler, *data) as messages:
            said = list(messages)
        (completed,) = (each for each in said if each["msg"] == "process_completed")
        assert completed["success"], completed
        return completed["output"]["data"], [each["log"] for each in said if each["msg"] == "log"]

    def send(self, message: str, description: str = "") -> tuple[Turn, list[str]]:
        given, warned = self.ask("send", "7", shelved(description), False, "[]", "", message)
        return read_turns(f"[{given[1]}]")[0], warned

    def press(self, handler: str) -> None:
        httpx.post(f"{self.url}run/predict", json=self.body(handler, ()), timeout=300).raise_for_status()
