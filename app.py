"""The page: `python app.py`, then describe a task in the browser and chat with the adapted model."""

import argparse
import os
import sys

from hyperlora.arguments import add_options, choose, named, open_pipeline
from hyperlora.errors import UserError


def port_number(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: give a number from 1 to 65535.")
    return int(text)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument(
        "--host", default=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), help="default: this machine only"
    )
    parser.add_argument(
        "--port",
        type=port_number,
        default=os.environ.get("GRADIO_SERVER_PORT"),
        help="default: the first free one from 7860 on",
    )
    return parser.parse_args(arguments)


def say(line: str) -> None:
    print(line, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Serve the page until Ctrl-C; returns the exit code: 1 where it cannot be opened, 2 for a mistake in options."""
    args = parse_arguments(arguments)
    try:
        # What was named and cannot be ends the command; looking for the best takes a while, so the page comes first.
        choice = choose(args) if named(args) else None
    except UserError as error:
        print(error, file=sys.stderr)
        return 2

    from hyperlora.ui.model import Model
    from hyperlora.ui.page import build_page, launch

    model = Model(lambda: open_pipeline(args, model.ask, say, model.report, choice))
    demo = build_page(model)
    try:
        url = launch(demo, args.host, args.port)
    except OSError:
        where = f"port {args.port}" if args.port else "the ports from 7860 on"
        print(
            f"The page cannot be opened: {where} on {args.host} cannot be used; choose another with --port or --host.",
            file=sys.stderr,
        )
        return 1
    moved = "" if args.port or url.endswith(":7860/") else " (port 7860 is in use)"
    print(f"HyperLoRA is at {url}{moved}", flush=True)
    model.start()
    demo.block_thread()
    return 0


if __name__ == "__main__":
    sys.exit(main())
