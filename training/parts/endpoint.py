"""A server that speaks OpenAI's chat completions, asked patiently."""

import json
import math
import os
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from threading import Event
from typing import Any, NamedTuple

from tqdm import tqdm

from hyperlora.errors import UserError

MAX_ANSWER_BYTES = 4 * 2**20
FIRST_WAIT, LONGEST_BACKOFF, LONGEST_WAIT = 1.0, 60.0, 600.0  # seconds
Messages = list[dict[str, str]]


class Reply(NamedTuple):
    """What a model answered, and the tokens that it took."""

    text: str
    prompt_tokens: int
    answer_tokens: int


Ask = Callable[[Sequence[Messages], int], list[Reply]]  # chats, number of the try -> an answer to each


class _MayPass(Exception):
    """A failure worth another try, after `wait` seconds where the server names them."""

    def __init__(self, reason: str, wait: float | None = None):
        super().__init__(reason)
        self.wait = wait


def endpoint(options, stop: Event) -> Ask:
    """Ask a server in OpenAI's chat completions format. Once `stop` is set, nothing is tried again.

    Raises UserError where the URL or the key cannot be right, the server refuses, or the tries are used up.
    """
    try:
        import httpx  # in the group `train`
    except ImportError:
        raise UserError("An endpoint is asked through the package httpx: pip install --group train.") from None
    url = options.url.rstrip("/") + "/chat/completions"
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL:
        parts = httpx.URL("")
    if parts.scheme not in ("http", "https") or not parts.host:
        raise UserError(f"--url must be an address such as http://localhost:8000/v1, not {options.url!r}.")
    key = os.environ.get(options.key_variable, "").strip()
    if not key.isascii() or not key.isprintable():
        raise UserError(f"The environment variable {options.key_variable} holds no key: it has odd characters in it.")
    client = httpx.Client(  # which follows no redirects: the key goes to the URL's host alone
        headers={"Authorization": f"Bearer {key}"} if key else None,
        timeout=options.timeout,
        limits=httpx.Limits(max_connections=options.concurrency),
    )

    def post(chat: Messages) -> Reply:
        body = {"model": options.model, "messages": chat, "temperature": options.temperature}
        if options.max_tokens:
            body["max_tokens"] = options.max_tokens
        content = bytearray()
        try:
            with client.stream("POST", url, json=body) as response:
                for chunk in response.iter_bytes():
                    content += chunk
                    if len(content) > MAX_ANSWER_BYTES:
                        raise UserError(f"{url} sent more than {MAX_ANSWER_BYTES >> 20} MiB: is it the right --url?")
        except httpx.HTTPError as error:
            raise _MayPass(f"{type(error).__name__}: {error}") from error
        try:
            data = json.loads(content)
        except (ValueError, RecursionError):
            data = None
        if response.status_code == 200:
            return _reply(data)
        code, reason = _refusal(data, response.reason_phrase)
        reason = f"{response.status_code}, {reason.replace(key, '***') if key else reason}"
        if code == "content_filter":
            return Reply("", 0, 0)
        passing = response.status_code in (408, 409, 425, 429) or response.status_code >= 500
        if passing and code != "insufficient_quota":
            raise _MayPass(reason, retry_after(response.headers.get("Retry-After")))
        hint = {401: f" Set {options.key_variable} to a valid key.", 404: " Check --url and --model."}
        raise UserError(f"{url} refused the request ({reason}).{hint.get(response.status_code, '')}")

    def patiently(chat: Messages) -> Reply:
        for attempt in range(options.retries + 1):
            try:
                return post(chat)
            except _MayPass as failure:
                backoff = min(FIRST_WAIT * 2**attempt, LONGEST_BACKOFF) * random.uniform(0.5, 1)
                wait = backoff if failure.wait is None else failure.wait
                last = failure
            if wait > LONGEST_WAIT:
                raise UserError(f"{url} asks to wait for {wait:.0f} s ({last}): start again then, to go on.")
            if attempt < options.retries:
                tqdm.write(f"Another try in {wait:.1f} s: {last}")
                if stop.wait(wait):
                    break
        raise UserError(f"{url} did not answer ({last}): start again to go on.")

    return lambda chats, attempt: [patiently(chat) for chat in chats]


def _reply(data: Any) -> Reply:
    """The content of a successful response -> the answer; no text where the model refused."""
    try:
        text = data["choices"][0]["message"].get("content")
        usage = data.get("usage") or {}
        tokens = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
        if not isinstance(text, str | None):
            raise TypeError
    except (LookupError, TypeError, ValueError, AttributeError):
        raise _MayPass("what came is no chat completion") from None
    return Reply((text or "").encode(errors="replace").decode(), *tokens)


def _refusal(data: Any, default: str) -> tuple[str, str]:
    """The content of an error response -> its code and its message, the latter in one line."""
    error = data.get("error", data) if isinstance(data, dict) else None
    if isinstance(error, dict):
        code, message = error.get("code"), error.get("message") or error.get("detail")
    else:
        code, message = None, error
    return str(code), " ".join((message if isinstance(message, str) else default).split())[:300]


def retry_after(value: str | None) -> float | None:
    """The header Retry-After, seconds or a date -> seconds from now; None where it says nothing."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = ((date if date.tzinfo else date.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()
    return max(seconds, 0.0) if math.isfinite(seconds) else None
