"""What a host says of its page or server: who visitors are, how much they may ask for, and where its figures are."""

import argparse
import os
from ipaddress import ip_network
from pathlib import Path

from hyperlora.errors import UserError
from hyperlora.limits import Limits
from hyperlora.text import MAX_DESCRIPTION

SPACES = "10.0.0.0/8"  # where a Space's proxy comes from
LOOPBACK = ("localhost", "127.0.0.1", "::1")
MAX_KEYS = 1_000
LIMITS = {
    "queue": "requests to the page that wait; further ones are refused",
    "chats": "answers that are given, or wait for the model, at once",
    "message": "characters of a message",
    "description": f"characters of a description; {MAX_DESCRIPTION:,} at most",
    "answer": "tokens of an answer",
    "chats_a_minute": "of each visitor",
    "adapters_a_minute": "of each visitor",
    "exports_a_minute": "of each visitor",
}


def port_number(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: give a number from 1 to 65535.")
    return int(text)


def whole_number(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 10**9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on.")
    return int(text)


def proxies(text: str) -> str:
    try:
        return ",".join(str(ip_network(part.strip())) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"give the proxy's address or network: {error}.") from None


def add_hosting(parser: argparse.ArgumentParser) -> None:
    """--trusted_proxy, --metrics_port, and a limit each."""
    group = parser.add_argument_group("what the host says and is told")
    group.add_argument(
        "--trusted_proxy",
        type=proxies,
        default=SPACES if os.environ.get("SPACE_ID") else None,
        metavar="ADDRESS",
        help="whose X-Forwarded-For says who a visitor is; several with commas. Without it all who come by a proxy are "
        "one visitor",
    )
    group.add_argument("--metrics_port", type=port_number, help="GET /metrics on 127.0.0.1, for Prometheus")
    group = parser.add_argument_group("limits, which hold however visitors ask")
    for name, help in LIMITS.items():
        default = getattr(Limits, name)
        group.add_argument(f"--max_{name}", type=whole_number, metavar="N", default=default, help=f"{help} ({default})")


def limits_of(args: argparse.Namespace) -> Limits:
    """What the options of `add_hosting` say."""
    return Limits(**{name: getattr(args, f"max_{name}") for name in LIMITS})


def add_keys(parser: argparse.ArgumentParser) -> None:
    """--api_key_file, --allow_host: who may ask the OpenAI-compatible server."""
    parser.add_argument(
        "--api_key_file", metavar="FILE", help="who may ask /v1, a key a line (default: those in HYPERLORA_API_KEY)"
    )
    parser.add_argument(
        "--allow_host", action="append", default=[], metavar="NAME", help="a name by which others may call /v1"
    )


def who_may_ask(args: argparse.Namespace) -> tuple[list[str], tuple[str, ...] | None]:
    """The keys, and the names by which the server may be called; None: any.

    Raises `UserError` where others than this machine's could come in without a key.
    """
    keys, local = read_keys(args.api_key_file), bare(args.host) in LOOPBACK
    if not local and not keys:
        raise UserError(
            f"A server on {args.host} is for others too, and needs a key: put one into HYPERLORA_API_KEY or "
            "--api_key_file."
        )
    return keys, (*LOOPBACK, *args.allow_host) if local or args.allow_host else None


def read_keys(path: str | None) -> list[str]:
    """The keys in a file, or else in the environment's HYPERLORA_API_KEY, a line or a word each."""
    try:
        text = os.environ.get("HYPERLORA_API_KEY", "") if path is None else Path(path).read_text(encoding="utf-8-sig")
    except (OSError, ValueError):
        raise UserError(f"The keys in {path} cannot be read: give a text file with a key in each line.") from None
    keys = text.split()
    if (path is not None and not keys) or len(keys) > MAX_KEYS:
        raise UserError(f"{path or 'HYPERLORA_API_KEY'} must hold 1 to {MAX_KEYS:,} keys, one in each line.")
    if not all(map(str.isascii, keys)):
        raise UserError("An API key holds more than ASCII, which no client can send: take letters and digits.")
    if any(len(key) < 16 for key in keys):
        raise UserError("An API key has fewer than 16 characters: take one that cannot be guessed.")
    return keys


def bare(host: str) -> str:
    """An IPv6 address without its brackets."""
    return host.removeprefix("[").removesuffix("]")
