"""A server that speaks OpenAI's chat completions, asked patiently through the package `openai`."""

import math
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from threading import Event
from typing import Any, NamedTuple
from urllib.parse import urlsplit

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


@dataclass(kw_only=True)
class Host:
    """Who is asked, and how patiently."""

    url: str
    """Up to its /v1."""
    model: str
    key_variable: str = "OPENAI_API_KEY"
    """The environment variable with the key; none is sent where it is unset."""
    temperature: float = 1.0
    max_tokens: int = 4096
    """0: not sent, for endpoints that refuse the field."""
    retries: int = 8
    """After a failure that may pass (limits, overload, time-outs), ever further apart."""
    timeout: float = 120.0
    """Seconds without a sign of the endpoint that count as a failure."""

    @property
    def name(self) -> str:
        """The host in the URL."""
        return urlsplit(self.url).hostname or self.url


class _MayPass(Exception):
    """A failure worth another try, after `wait` seconds where the server names them."""

    def __init__(self, reason: str, wait: float | None = None):
        super().__init__(reason)
        self.wait = wait


def endpoint(options: Host, stop: Event) -> Ask:
    """Ask the server of the options. Once `stop` is set, nothing is tried again.

    Raises UserError where the URL, the key or the environment's proxy cannot be right, the server refuses, or the tries
    are used up.
    """
    try:
        import openai  # few want it, and it takes seconds to import
    except ImportError:
        raise UserError("An endpoint is asked through the package openai: pip install openai.") from None
    _check_url(options.url)
    key = os.environ.get(options.key_variable, "").strip()
    if not key.isascii() or not key.isprintable():
        raise UserError(f"The environment variable {options.key_variable} holds no key: it has odd characters in it.")
    try:
        client = openai.OpenAI(
            base_url=options.url,
            api_key=key or "none",
            timeout=options.timeout,
            max_retries=0,  # `patiently`, which can be stopped and says what it waits for
            http_client=openai.DefaultHttpxClient(
                follow_redirects=False,  # the key goes to the URL's host alone
                event_hooks={"response": [_bounded]},
            ),
        )
    except (ImportError, ValueError) as error:  # a SOCKS proxy without its package, a proxy that is no URL
        raise UserError(f"The proxy that the environment names cannot be used ({error}): unset it.") from None
    # What else the environment holds for OpenAI would go to any server; an encoding's few bytes could unfold to many.
    unsent = ["OpenAI-Organization", "OpenAI-Project", *([] if key else ["Authorization"])]
    headers = {"Accept-Encoding": "identity"} | dict.fromkeys(unsent, openai.omit)
    length = {"max_tokens": options.max_tokens} if options.max_tokens else {}

    def ask(chat: Messages) -> Reply:
        try:
            return _reply(
                client.chat.completions.create(
                    model=options.model, messages=chat, temperature=options.temperature, extra_headers=headers, **length
                )
            )
        except UserError:  # a ValueError too
            raise
        except openai.APIStatusError as error:
            reason = " ".join(error.message.split())[:300]
            reason = reason.replace(key, "***") if key else reason
            if error.code == "content_filter":
                return Reply("", 0, 0)
            passing = error.status_code in (408, 409, 425, 429) or error.status_code >= 500
            if passing and error.code != "insufficient_quota":
                raise _MayPass(reason, retry_after(error.response.headers.get("Retry-After"))) from None
            hints = {
                401: f" Set {options.key_variable} to a valid key.",
                404: " Check the address and the model's name.",
            }
            hint = hints.get(error.status_code, "")
            raise UserError(f"{options.url} refused the request ({reason}).{hint}") from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            raise _MayPass(f"{type(cause).__name__}: {cause}") from error
        except (ValueError, RecursionError):  # no JSON, though the server says that it is
            raise _MayPass("what came is no chat completion") from None

    def patiently(chat: Messages) -> Reply:
        for attempt in range(options.retries + 1):
            try:
                return ask(chat)
            except _MayPass as failure:
                backoff = min(FIRST_WAIT * 2**attempt, LONGEST_BACKOFF) * random.uniform(0.5, 1)
                wait = backoff if failure.wait is None else failure.wait
                last = failure
            if wait > LONGEST_WAIT:
                raise UserError(f"{options.url} asks to wait for {wait:.0f} s ({last}): start again then, to go on.")
            if attempt < options.retries:
                tqdm.write(f"Another try in {wait:.1f} s: {last}")
                if stop.wait(wait):
                    break
        raise UserError(f"{options.url} did not answer ({last}): start again to go on.")

    return lambda chats, attempt: [patiently(chat) for chat in chats]


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError:
        good = False
    if not good:
        raise UserError(f"The endpoint's url must be an address such as http://localhost:8000/v1, not {url!r}.")


def _bounded(response: Any) -> None:
    """The hook of a response that has just begun: no more of it is read than an answer can be."""
    from httpx2 import SyncByteStream  # what openai sends by

    stream, address = response.stream, response.url

    class Bounded(SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            size = 0
            for part in stream:
                size += len(part)
                if size > MAX_ANSWER_BYTES:
                    raise UserError(f"{address} sent more than {MAX_ANSWER_BYTES >> 20} MiB: is it the right address?")
                yield part

        def close(self) -> None:
            stream.close()

    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise UserError(f"{address} sent an encoding that was not asked for: is it the right address?")
    response.stream = Bounded()


def _reply(completion: Any) -> Reply:
    """A chat completion, which `openai` does not check, -> the answer; no text where the model refused."""
    try:
        text, usage = completion.choices[0].message.content, completion.usage
        tokens = [int(getattr(usage, name, None) or 0) for name in ("prompt_tokens", "completion_tokens")]
        if not isinstance(text, str | None):
            raise TypeError
    except (LookupError, TypeError, ValueError, AttributeError):
        raise _MayPass("what came is no chat completion") from None
    return Reply((text or "").encode(errors="replace").decode(), *tokens)


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
