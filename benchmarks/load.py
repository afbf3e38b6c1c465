"""Many visitors of one page and its server at once, for some minutes, doing what people do; it stops by itself.

python -m benchmarks.load [--visitors 200] [--minutes 10] [--preset mini] [--kills 0]

It starts `app.py --openai` on this machine and visits it: visitors make adapters, chat over the page's API and over the
server, stop answers, vanish in the middle of them, read a byte a second, load the page again, and export. Every whole
answer is compared with what its own adapter says to the message when nobody else is there. What the visitors themselves
cost is told apart.
"""

import argparse
import asyncio
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, TextIO

import httpx

import hyperlora
from benchmarks.measure import TASKS, parser, print_table, resident_mb

STRENGTHS = (0.8, 1.0, 1.2)
THINK = 8.0  # seconds between two things that a visitor does, on average
BUSY = re.compile(r"busy|waiting|try again|a minute here")
APPETITE = {
    "chat on the server": 8,
    "chat on the page": 6,
    "stop": 3,
    "vanish": 2,
    "adapt": 3,
    "reload": 1,
    "export": 1,
    "dawdle": 1,
}


@dataclass
class Seen:
    """What happened to all visitors."""

    done: Counter = field(default_factory=Counter)
    firsts: list[float] = field(default_factory=list)  # seconds until the first piece of an answer
    silences: list[float] = field(default_factory=list)  # the longest without a word, of each answer
    wrong: list[str] = field(default_factory=list)
    others: int = 0  # answers that are another visitor's adapter's, and not their own
    failed: list[str] = field(default_factory=list)


Expected = dict[tuple[str, float, str], str]  # by description, strength and message


def expected(preset: str) -> Expected:
    """What each adapter says to each message, one at a time."""
    pipe = hyperlora.pipeline(preset)
    found: Expected = {}
    for text in TASKS:
        adapter = pipe.adapt(text)
        for strength in STRENGTHS:
            for message in list(TASKS.values())[:4]:
                found[text, strength, message] = pipe.chat(message, adapter.scaled(strength), max_new_tokens=64)
    pipe.close()
    return found


class Visitor:
    """One of them, with an adapter of their own at a time."""

    def __init__(self, number: int, url: str, client: httpx.AsyncClient, answers: Expected, seen: Seen, restarts: bool):
        self.random, self.url, self.client, self.answers, self.seen = Random(number), url, client, answers, seen
        self.restarts = restarts
        self.choose()

    def choose(self) -> None:
        self.description, self.strength, _ = self.random.choice(list(self.answers))

    async def live(self, until: float) -> None:
        await asyncio.sleep(self.random.random() * THINK)
        while time.monotonic() < until:
            [what] = self.random.choices(list(APPETITE), APPETITE.values())
            try:
                await getattr(self, what.replace(" ", "_"))()
                self.seen.done[what] += 1
            except Refused as refused:
                kind = "told that it is busy" if BUSY.search(str(refused)) else "refused"
                self.seen.done[f"{what}: {kind}"] += 1
                if kind == "refused":
                    self.seen.failed.append(f"{what}: {refused}")
            except Exception as error:
                cut = self.restarts and isinstance(error, httpx.TransportError)
                self.seen.done[f"{what}: {'cut off by a kill' if cut else 'failed'}"] += 1
                self.seen.failed += [] if cut else [f"{what}: {type(error).__name__}: {error}"]
            await asyncio.sleep(self.random.expovariate(1 / THINK))

    # ---- what they do ----

    async def adapt(self) -> None:
        self.choose()
        await self.call("adapt", recipe=self.description)

    async def chat_on_the_server(self) -> None:
        message = self.message()
        self.check(message, "".join([piece async for piece in self.server(message)]))

    async def chat_on_the_page(self) -> None:
        message = self.message()
        own = {"recipe": self.description, "strength": self.strength}
        self.check(message, await self.call("chat", messages=message, **own, max_tokens=64))

    async def stop(self) -> None:
        async for _ in self.server(self.message()):
            if self.random.random() < 0.3:
                return

    async def vanish(self) -> None:
        body = {"messages": self.message(), "recipe": self.description}
        await self.client.post(f"{self.url}/gradio_api/call/v2/chat", json=body)

    async def dawdle(self) -> None:
        body = {"model": f"hyperlora:{self.description}", "messages": [{"role": "user", "content": self.message()}]}
        async with self.client.stream(
            "POST", f"{self.url}/v1/chat/completions", json=body | {"stream": True}
        ) as answer:
            read = 0
            async for _ in answer.aiter_raw(1):
                if (read := read + 1) > 15:
                    return
                await asyncio.sleep(1)

    async def reload(self) -> None:
        answer = await self.client.get(self.url)
        assert answer.status_code == 200 and "HyperLoRA" in answer.text

    async def export(self) -> None:
        file = await self.call("export", recipe=self.description, strength=self.strength)
        answer = await self.client.get(f"{self.url}/gradio_api/file={file['path']}")
        assert answer.status_code == 200 and answer.content.startswith(b"PK")

    # ---- how ----

    def message(self) -> str:
        return self.random.choice([m for d, s, m in self.answers if (d, s) == (self.description, self.strength)])

    def check(self, message: str, answer: str) -> None:
        wanted = self.answers[self.description, self.strength, message]
        if answer != wanted:
            self.seen.wrong.append(f"{self.description} {self.strength} {message!r}: {answer!r}, not {wanted!r}")
            same = (text for (_, _, asked), text in self.answers.items() if asked == message)
            self.seen.others += answer in same

    async def server(self, message: str) -> AsyncIterator[str]:
        """The pieces of an answer of the server."""
        body = {
            "model": f"hyperlora@{self.strength}:{self.description}",
            "messages": [{"role": "user", "content": message}],
            "max_tokens": 64,
            "stream": True,
        }
        began = heard = time.monotonic()
        first, silence = None, 0.0
        async with self.client.stream("POST", f"{self.url}/v1/chat/completions", json=body) as answer:
            if answer.status_code != 200:
                raise Refused((await answer.aread()).decode())
            async for line in answer.aiter_lines():
                now = time.monotonic()
                silence, heard = max(silence, now - heard), now
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    raise Refused(event["error"]["message"])
                if piece := event["choices"][0]["delta"].get("content"):
                    first = first or now - began
                    yield piece
        self.seen.firsts += [first] if first else []
        self.seen.silences.append(silence)

    async def call(self, name: str, **arguments: object) -> Any:
        """The last value of an endpoint of the page's API."""
        began = heard = time.monotonic()
        first, silence, data = None, 0.0, None
        answer = await self.client.post(f"{self.url}/gradio_api/call/v2/{name}", json=arguments)
        if answer.status_code != 200:
            raise Refused(answer.text)
        stream = f"{self.url}/gradio_api/call/{name}/{answer.json()['event_id']}"
        event = ""
        async with self.client.stream("GET", stream) as lines:
            async for line in lines.aiter_lines():
                now = time.monotonic()
                silence, heard = max(silence, now - heard), now
                if line.startswith("event: "):
                    event = line[7:]
                elif line.startswith("data: ") and event == "error":
                    raise Refused(line[6:])
                elif line.startswith("data: ") and event in ("generating", "complete"):
                    first = first or now - began
                    data = json.loads(line[6:]) or data
        if name == "chat":
            self.seen.firsts += [first] if first else []
            self.seen.silences.append(silence)
        return data[0]


class Refused(Exception):
    """An answer that is a sentence of the server's."""


class Server:
    """`app.py --openai`, which can be killed and started again."""

    def __init__(self, preset: str, log: TextIO):
        self.url = "http://127.0.0.1:7899"
        self.command = [sys.executable, "app.py", "--preset", preset, "--openai", "--port", "7899"]
        # All visitors have one address here.
        self.command += [f"--max_{what}_a_minute={10**6}" for what in ("chats", "adapters", "exports")]
        self.log, self.seconds = log, 0.0

    def start(self) -> None:
        """Start it, and wait until the model is there."""
        self.process = subprocess.Popen(self.command, stdout=self.log, stderr=self.log, cwd=Path(__file__).parents[1])
        while self.process.poll() is None:
            with suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/health", trust_env=False).status_code == 200:
                    return
            time.sleep(0.5)
        raise SystemExit("The page did not start.")

    def end(self, how: int = signal.SIGTERM) -> None:
        """End it, and count the processor time that it took."""
        spent = Path(f"/proc/{self.process.pid}/stat").read_text().split()
        self.seconds += (int(spent[13]) + int(spent[14])) / os.sysconf("SC_CLK_TCK")
        self.process.send_signal(how)
        self.process.wait(60)


async def visit(args: argparse.Namespace, server: Server, answers: Expected) -> tuple[Seen, list[float]]:
    """All visitors until the time is over -> what they saw, and the server's memory in MB, minute by minute."""
    seen, memory = Seen(), []
    until = time.monotonic() + 60 * args.minutes
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=args.visitors)
    async with httpx.AsyncClient(timeout=120, limits=limits, trust_env=False) as client:
        given = server.url, client, answers, seen, args.kills > 0
        visitors = [Visitor(i, *given).live(until) for i in range(args.visitors)]

        async def watch() -> None:
            while time.monotonic() < until:
                await asyncio.sleep(min(60, max(0.1, until - time.monotonic())))
                with suppress(OSError, ValueError):  # killed a moment ago
                    memory.append(resident_mb(server.process.pid))
                print(f"{len(memory)} minutes, {memory[-1]:,.0f} MB, {dict(seen.done)}", file=sys.stderr, flush=True)

        async def kill() -> None:
            for i in range(args.kills):
                await asyncio.sleep(Random(i).uniform(0.5, 1.5) * 60 * args.minutes / (args.kills + 1))
                await asyncio.to_thread(server.end, signal.SIGKILL)
                await asyncio.to_thread(server.start)

        await asyncio.gather(watch(), kill(), *visitors)
    return seen, memory


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--visitors", type=int, default=200, help="at once (default: 200)")
    options.add_argument("--minutes", type=float, default=10, help="how long (default: 10)")
    options.add_argument("--preset", default="mini", help="the page's model (default: mini)")
    options.add_argument("--kills", type=int, default=0, help="times that the server is killed, and started again")
    args = options.parse_args()
    answers = expected(args.preset)
    with tempfile.TemporaryFile("w+") as log:
        server = Server(args.preset, log)
        server.start()
        try:
            began = time.process_time()
            seen, memory = asyncio.run(visit(args, server, answers))
            own = time.process_time() - began
        finally:
            server.end()
        log.seek(0)
        tracebacks = log.read().count("Traceback")
    report(args, seen, memory, own, server.seconds, tracebacks)
    return int(bool(seen.others or seen.failed or tracebacks))


def report(
    args: argparse.Namespace, seen: Seen, memory: list[float], own: float, theirs: float, tracebacks: int
) -> None:
    total = sum(seen.done.values())
    sends = sum(count for what, count in seen.done.items() if what.startswith(("chat", "stop")))
    lost = sum(
        count
        for what, count in seen.done.items()
        if what.startswith(("chat", "stop")) and what.endswith((": failed", ": refused"))
    )
    firsts = sorted(seen.firsts)
    print_table(
        [f"{args.visitors} visitors, {args.minutes:g} minutes, {args.preset}", ""],
        [
            ["things done", f"{total:,}"],
            ["sends; answered, or told that the model is busy", f"{sends:,}; {100 * (1 - lost / max(1, sends)):.1f} %"],
            [
                "first piece: median, 99 of 100",
                f"{statistics.median(firsts):.2f} s, {firsts[len(firsts) * 99 // 100]:.2f} s",
            ],
            ["longest without a word", f"{max(seen.silences):.1f} s"],
            ["answers that differ from those of their adapter alone", f"{len(seen.wrong):,} of {len(firsts):,}"],
            ["of these, answers of another adapter", f"{seen.others:,}"],
            ["memory after a minute, at the end", f"{memory[0]:,.0f} MB, {memory[-1]:,.0f} MB"],
            ["tracebacks in the log", f"{tracebacks:,}"],
            ["processor time: the server, the visitors", f"{theirs:,.0f} s, {own:,.0f} s"],
        ],
    )
    for what, count in sorted(seen.done.items()):
        print(f"{count:8,}  {what}")
    for line in [*seen.wrong[:5], *seen.failed[:5]]:
        print(line[:300])


if __name__ == "__main__":
    sys.exit(main())
