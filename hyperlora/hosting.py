"""What a host says of its page or server: who visitors are, how much they may ask for, and where its figures are."""

import argparse
from ipaddress import ip_network

from hyperlora.limits import Limits
from hyperlora.text import MAX_DESCRIPTION

LIMITS = {
    "queue": "requests that wait; further ones are refused",
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
