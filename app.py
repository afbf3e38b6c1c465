"""The page: `python app.py`, then describe a task in the browser and chat with the adapted model."""

import argparse
import os
import sys


def port_number(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: give a number from 1 to 65535.")
    return int(text)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="mini", help="a named pair of base model and hypernetwork (default: mini)")
    parser.add_argument("--base", help="a base model instead of the preset's: a folder or a Hub id")
    parser.add_argument("--hyperlora", help="a hypernetwork instead of the preset's: a folder or a Hub id")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    parser.add_argument(
        "--host", default=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), help="default: this machine only"
    )
    parser.add_argument(
        "--port",
        type=port_number,
        default=os.environ.get("GRADIO_SERVER_PORT"),
        help="default: the first free one from 7860 on",
    )
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()

    def load():
        import hyperlora

        return hyperlora.pipeline(args.preset, base=args.base, hyperlora=args.hyperlora, device=args.device)

    from hyperlora.ui.model import Model
    from hyperlora.ui.page import build_page, launch

    model = Model(load)
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
