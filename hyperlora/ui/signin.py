"""Signing in, where the page asks for a user and a password: how the password comes, and how often it may be tried."""

import hmac
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hyperlora.bounds import App, refuse
from hyperlora.errors import UserError
from hyperlora.limits import Limits, Rate, address

VARIABLE = "HYPERLORA_PASSWORD"
SHORTEST, LONGEST = 8, 1_000  # characters
TRIES, ALL_TRIES = 5, 60  # a minute that fail: of an address, and of all together
MESSAGE = f"After {TRIES} wrong passwords wait for a minute."


def read_password(file: str | None) -> str:
    """The password from the file's first line, or else from the environment, where it does not stay. Raises `UserError`
    where there is none, or one that is soon guessed."""
    password = os.environ.pop(VARIABLE, "")
    if file is not None:
        try:
            with Path(file).expanduser().open(encoding="utf-8-sig") as opened:
                password = opened.readline(LONGEST + 2).rstrip("\r\n")
        except (OSError, UnicodeError):
            raise UserError(f"The password cannot be read from {file}: name a text file that you may read.") from None
    if not password:
        raise UserError(f"--auth needs a password: put it into {VARIABLE}, or into a file, and give --password_file.")
    if not SHORTEST <= len(password) <= LONGEST:
        raise UserError(f"The password must have {SHORTEST} to {LONGEST:,} characters.")
    return password


def matches(user: str, password: str) -> Callable[[str, str], bool]:
    """Whether somebody is that user, in a time that does not tell how much of it is right."""

    def check(name: str, word: str) -> bool:
        right = [hmac.compare_digest(a.encode(), b.encode()) for a, b in ((name, user), (word, password))]
        return all(right)

    return check


class SignIns:
    """An ASGI app that answers 429 to whoever has tried too many passwords."""

    def __init__(self, app: App, limits: Limits):
        self.app, self.limits = app, limits
        self._tries, self._all = Rate("wrong passwords", TRIES), Rate("wrong passwords of all", ALL_TRIES)

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].rstrip("/").endswith("/login"):
            return await self.app(scope, receive, send)
        who = address(scope["client"])
        try:
            self._tries.take(who)
            self._all.take("")
        except UserError as error:
            self.limits.refused["passwords"] += 1
            return await refuse(send, 429, str(error))

        async def answer(message: dict[str, Any]) -> None:
            if message.get("status") == 200:  # whoever knows the password has not guessed
                self._tries.give_back(who)
                self._all.give_back("")
            await send(message)

        return await self.app(scope, receive, answer)
