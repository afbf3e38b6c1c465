"""The page: `python app.py`, then describe a task in the browser and chat with the adapted model."""

import argparse
import ipaddress
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from urllib.parse import urlsplit

from hyperlora.arguments import add_options, choose, named, open_pipeline
from hyperlora.choice import Choice
from hyperlora.endpoint import Host, endpoint
from hyperlora.errors import UserError
from hyperlora.files import check_writable
from hyperlora.hosting import add_hosting, add_keys, bare, limits_of, port_number, who_may_ask
from hyperlora.text import command_line, open_streams


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument(
        "--host", default=os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1", help="default: this machine only"
    )
    parser.add_argument(
        "--port",
        type=port_number,
        default=os.environ.get("GRADIO_SERVER_PORT") or None,
        help="default: the first free one from 7860 on",
    )
    parser.add_argument(
        "--merge",
        choices=("yes", "no"),
        help="whether visitors get the base model with an adapter in its weights, as a file of its size (default: yes "
        "where the page is for this machine alone)",
    )
    group = parser.add_argument_group("descriptions from examples, for visitors who agree to send them")
    group.add_argument("--describe_endpoint", metavar="URL", help="of OpenAI's chat completions; key: OPENAI_API_KEY")
    group.add_argument("--describe_model", metavar="NAME", help="the endpoint's name of the model")
    group = parser.add_argument_group("who may come, and what the host is told")
    group.add_argument("--auth", metavar="USER", help="ask for this user's password: HYPERLORA_PASSWORD")
    group.add_argument("--password_file", metavar="FILE", help="whose first line is the password instead")
    group.add_argument("--openai", action="store_true", help="an OpenAI-compatible server too, below /v1")
    add_keys(group)
    group.add_argument("--mcp", action="store_true", help="adapt, chat and compare are tools for MCP clients too")
    add_hosting(parser)
    return parser.parse_args(arguments)


def describing(args: argparse.Namespace) -> Host | None:
    """Who is asked for descriptions; `UserError` where nobody can be."""
    if not (args.describe_endpoint or args.describe_model):
        return None
    if not (args.describe_endpoint and args.describe_model):
        raise UserError("--describe_endpoint and --describe_model go together: give both, or neither.")
    host = Host(url=args.describe_endpoint, model=args.describe_model, retries=1, timeout=60)
    endpoint(host, Event())
    return host


def signing_in(args: argparse.Namespace) -> str | None:
    """The password of those who are to sign in; `UserError` where there is none, or it would not keep others out."""
    if args.auth is None:
        if args.password_file is not None:
            raise UserError("--password_file goes with --auth USER: give both, or neither.")
        return None
    if args.mcp:
        raise UserError("--mcp and --auth exclude each other: MCP's clients do not sign in.")
    if not args.auth.strip() or args.auth != args.auth.strip():
        raise UserError("--auth must be a user's name, without spaces around it.")
    from hyperlora.ui.signin import read_password

    return read_password(args.password_file)


def on_zero_gpu() -> bool:
    """Whether this is a Space that is lent a GPU for each answer."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


def merges(args: argparse.Namespace) -> bool:
    """Whether visitors get whole models written."""
    if args.merge is not None:
        return args.merge == "yes"
    host = bare(args.host)
    try:
        alone = ipaddress.ip_address(host).is_loopback
    except ValueError:
        alone = host == "localhost"
    return alone and not os.environ.get("SPACE_ID")


def say(line: str) -> None:
    print(line, flush=True)


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Inside, the environment has these variables."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@contextmanager
def own_folder() -> Iterator[None]:
    """Inside, what Gradio writes has a folder of its own, since that of all users may be another's, and caches have a
    home. Raises `UserError` where no such folder can be written."""
    try:
        temporary = tempfile.TemporaryDirectory(prefix="hyperlora-", ignore_cleanup_errors=True)
    except OSError as error:
        raise UserError("No folder for temporary files can be written: set TMPDIR to one that can.") from error
    with temporary as folder:
        named = Path(os.environ.get("GRADIO_TEMP_DIR") or folder)
        check_writable(named, "set GRADIO_TEMP_DIR to a folder that can be written, or leave it out")
        home = os.path.expanduser("~")
        if home == "~":  # HOME is not set, and the user is not in the list of users
            home = folder
            say("There is no home folder: what is downloaded lasts as long as this page, unless HF_HOME says where to.")
        with environment(GRADIO_TEMP_DIR=str(named), HOME=home):
            yield


def main(arguments: list[str] | None = None) -> int:
    """Serve the page until Ctrl-C; returns the exit code: 1 where it cannot be opened, 2 for a mistake in options,
    130 after Ctrl-C while it starts."""
    open_streams()
    try:
        args = parse_arguments(command_line(arguments))
        if on_zero_gpu():
            import spaces  # noqa: F401  before torch, whose CUDA it takes the place of

            args.device, args.yes = "cpu", True  # from there it is put on the GPU; nobody can be asked before that
        with own_folder():
            # What was named and cannot be ends the command; the best takes a while to find, so the page comes first.
            password = signing_in(args)
            if args.mcp and find_spec("mcp") is None:
                raise UserError("--mcp needs the package mcp: pip install 'mcp>=1.30,<2'.")
            if args.openai:
                who_may_ask(args)
            choice = choose(args) if named(args) else None
            return serve(args, choice, describing(args), password)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before the page waits for it
        return 130


def serve(
    args: argparse.Namespace, choice: Choice | None, host: Host | None = None, password: str | None = None
) -> int:
    # Gradio reads these where it is imported and where it asks its own server whether it is there: no proxy has part in
    # that, and free ports are looked for in IPv4.
    with environment(no_proxy="*", GRADIO_SERVER_NAME="127.0.0.1"):
        from hyperlora.health import serve_metrics
        from hyperlora.model import Model
        from hyperlora.ui.page import build_page, launch
        from hyperlora.ui.signin import matches

        model = Model(lambda: open_pipeline(args, model.ask, say, model.report, choice), limits_of(args))
        if on_zero_gpu():
            from hyperlora.ui.zero import open_zero

            model = Model(lambda: open_zero(args, say, choice), limits_of(args))
            model.run()  # in the main thread, the only one whose CUDA is stood in for, and before the page is there
        demo = build_page(model, host, merges(args), args.mcp)
        check, beside = None if password is None else matches(args.auth, password), []
        if args.openai:
            from hyperlora.server import Beside, Server

            beside = [(Beside, (Server(model, *who_may_ask(args)),), {})]
        try:
            url = launch(demo, args.host, args.port, check=check, proxies=args.trusted_proxy or "", beside=beside)
        except (OSError, UnicodeError):
            return cannot_open(args)
        try:
            if args.metrics_port:
                serve_metrics(model, demo._queue, args.metrics_port)
        except UserError as error:
            print(error, file=sys.stderr)
            return 1
    if args.mcp:
        reach_itself(url)
    moved = "" if args.port or url.endswith(":7860/") else " (port 7860 is in use)"
    say(f"HyperLoRA is at {url}{moved}")
    if not model.settled:
        model.start()
    demo.block_thread()
    return 0


def reach_itself(url: str) -> None:
    """No proxy has part in what the tools of MCP ask of this server itself."""
    others = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    os.environ["no_proxy"] = ",".join(filter(None, (others, urlsplit(url).hostname)))


def cannot_open(args: argparse.Namespace) -> int:
    reason = f"port {args.port} on {args.host} cannot be used"
    if not args.port:
        reason = f"{args.host} has no port from 7860 up that can be used"
    print(f"The page cannot be opened: {reason}; choose another with --port or --host.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
