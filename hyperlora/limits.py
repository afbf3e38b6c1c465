"""What visitors may ask for at most, wherever they ask: on the page, through the API, through MCP."""

import math
import secrets
import sys
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address, ip_network

from hyperlora.errors import Busy, UserError
from hyperlora.text import MAX_DESCRIPTION, check_text

MAX_VISITORS = 10_000  # that are remembered; whoever has not asked for longest is forgotten first
# MCP's tools are called by a request of this process to itself, which says in this header for whom: only it knows how.
FOR, SECRET = "x-hyperlora-visitor", secrets.token_hex(16)
ASKING: ContextVar[str | None] = ContextVar("asking", default=None)  # whom the OpenAI-compatible server works for


class Rate:
    """At most so many a minute for each visitor, or as many at once after a minute without any."""

    def __init__(self, what: str, most: int, clock: Callable[[], float] = time.monotonic):
        self.what, self.most, self._clock = what, most, clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """How many a visitor may have yet, and when that was counted."""
        self._lock = threading.Lock()

    def take(self, visitor: str) -> None:
        """One more for the visitor; `Busy` says when that is possible again."""
        with self._lock:
            now = self._clock()
            left, counted = self._left.pop(visitor, (self.most, now))
            left = min(self.most, left + (now - counted) * self.most / 60)
            self._left[visitor] = (left - 1 if left >= 1 else left, now)
            if len(self._left) > MAX_VISITORS:
                self._left.popitem(last=False)
        if left < 1:
            seconds = math.ceil((1 - left) * 60 / self.most)
            raise Busy(
                f"There may be {self.most:,} {self.what} a minute here, and you have had them: try again in {seconds} "
                f"second{'s' * (seconds != 1)}."
            )

    def give_back(self, visitor: str) -> None:
        """One that was taken is not to count."""
        with self._lock:
            if visitor in self._left:
                left, counted = self._left[visitor]
                self._left[visitor] = (left + 1, counted)


@dataclass
class Limits:
    """The limits, and what has been counted against them."""

    queue: int = 256
    """Requests that wait for a thread; further ones are refused."""
    chats: int = 60
    """Answers at once that are given, or wait for the engine."""
    message: int = 100_000
    """Characters."""
    description: int = MAX_DESCRIPTION
    """Characters."""
    answer: int = 16_384
    """Tokens."""
    chats_a_minute: int = 240
    """Of a visitor's, as the two below; of a file all rows together count as one."""
    adapters_a_minute: int = 240
    exports_a_minute: int = 60
    granted: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._rates = {what: Rate(what, getattr(self, f"{what}_a_minute")) for what in ("chats", "adapters", "exports")}

    def take(self, what: str) -> None:
        """One more of the "chats", "adapters" or "exports" of whoever asks; `UserError` where they are too many."""
        who = visitor()
        try:
            if who is not None:
                self._rates[what].take(who)
        except UserError:
            self.refused[what] += 1
            raise
        self.granted[what] += 1

    def check(self, what: str, text: object, most: int) -> None:
        """`UserError`, which begins with `what`, where that is no text, or a longer one."""
        if len(check_text(text, what)) > most:
            self.refused["lengths"] += 1
            raise UserError(f"{what} has {len(text):,} characters; the limit here is {most:,}: shorten it.")


def visitor() -> str | None:
    """Who asks for what this thread does: a user who signed in, or an address; None where it is no request's."""
    if (asking := ASKING.get()) is not None:
        return asking
    if "gradio" not in sys.modules:  # no page is served
        return None
    from gradio.context import LocalContext

    if (request := LocalContext.request.get(None)) is None:
        return None
    if request.username:
        return f"user {request.username}"
    secret, _, told = request.headers.get(FOR, "").partition(" ")
    if secrets.compare_digest(secret.encode(), SECRET.encode()):
        return told
    return address(request.client)


def address(client: tuple[str, int] | None) -> str:
    """What one visitor has of the address: of IPv6 a network of 64 bits, in which anybody has all addresses."""
    host = client[0] if client else ""
    try:
        found = ip_address(host)
    except ValueError:  # a socket in a file
        return host
    if isinstance(found, IPv6Address):
        return str(found.ipv4_mapped or ip_network((int(found) >> 64 << 64, 64)))
    return str(found)
