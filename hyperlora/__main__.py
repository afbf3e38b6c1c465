"""The command line: `python -m hyperlora generate "DESCRIPTION" -o DIR`, `python -m hyperlora chat "DESCRIPTION"`;
`python -m hyperlora base MODEL -o FILE.gguf` for what llama.cpp uses adapters with; `python -m hyperlora import SRC -o
DIR` for hypernetworks in the public implementation's format."""

import argparse
import os
import sys

from hyperlora.arguments import FORMS, add_options, choose, named, named_pair, open_pipeline
from hyperlora.errors import UserError
from hyperlora.text import check_description, command_line, open_streams


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for a mistake in the input, 130 after Ctrl-C."""
    open_streams()
    args = None
    try:
        args = _parser().parse_args(command_line(arguments))
        args.run(args)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # the reader of a pipe has gone: nothing is left to say to it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        print(f"{error.filename or getattr(args, 'output', None) or 'A file'}: {error.strerror}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hyperlora", description="Describe a task, get a LoRA adapter, chat with the adapted model."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    add_options(common)

    generate = commands.add_parser("generate", parents=[common], help="write a description's adapter")
    generate.add_argument("description", metavar="DESCRIPTION")
    generate.add_argument("-o", "--output", required=True, metavar="DIR", help="the folder, or with --format a .zip")
    generate.add_argument(
        "--format",
        choices=FORMS,
        help="with a card, and the commands that use it: PEFT's, GGUF for llama.cpp and Ollama, or the model with the "
        "adapter merged in, as either (default: a plain PEFT folder)",
    )
    generate.add_argument("--strength", type=float, default=1.0, help="of the adapter (default: 1, as generated)")
    generate.set_defaults(run=_generate)

    chat = commands.add_parser("chat", parents=[common], help="a line of standard input, a line of answer")
    what = chat.add_mutually_exclusive_group(required=True)
    what.add_argument("description", metavar="DESCRIPTION", nargs="?")
    what.add_argument("--adapter", metavar="DIR", help="a PEFT folder instead of a description")
    chat.add_argument(
        "--describe",
        action=argparse.BooleanOptionalAction,
        help="put the description in the prompt too, or not (default: as in training)",
    )
    chat.set_defaults(run=_chat)

    base = commands.add_parser("base", help="write a base model as GGUF, which llama.cpp uses adapters with")
    base.add_argument("model", metavar="MODEL", help="a preset, a folder, a Hub id, or ID@REVISION")
    base.add_argument("-o", "--output", required=True, metavar="FILE.gguf", help="the file to write")
    base.set_defaults(run=_base)

    importing = commands.add_parser(
        "import", help="turn a public text-to-lora checkpoint into one that HyperLoRA loads"
    )
    importing.add_argument("source", metavar="SRC", help="its folder, or the Hub id of its repository")
    importing.add_argument("-o", "--output", required=True, metavar="DIR", help="the folder to write")
    importing.add_argument("--subfolder", metavar="PATH", help="where in SRC it lies")
    importing.add_argument("--revision", help="which commit, branch or tag of the Hub repository")
    importing.add_argument("--order", metavar="q_proj,v_proj", help="the module types as the checkpoint numbers them")
    importing.set_defaults(run=_import)
    return parser


def _generate(args: argparse.Namespace) -> None:
    from hyperlora.base import find_device
    from hyperlora.embedder import LAST_TOKEN
    from hyperlora.generator import HyperLoRA

    check_description(args.description)  # before seconds of loading
    _quiet()
    if args.format is not None:
        return _export(args)
    choice = None
    if named(args):
        pair = named_pair(args.preset, args.base, args.hyperlora)
    else:
        choice = choose(args)
        pair = choice.pair
    hyperlora = HyperLoRA.from_pretrained(*pair.native) if pair.native else None
    # Only then is the base model needed: to read the description, or to settle the order of the module types.
    if hyperlora is None or hyperlora.config.embedder == LAST_TOKEN or hyperlora.config.module_order_assumed:
        adapter = open_pipeline(args, _ask, _say, choice=choice).adapt(args.description)
    else:
        if choice is not None:
            _say(choice.why)
        device = "cpu" if args.device == "auto" else args.device
        [adapter] = hyperlora.to(find_device(device)).generate(args.description)
    adapter.scaled(args.strength).save_pretrained(args.output)
    if adapter.notice:
        _say(adapter.notice)
    print(f"The adapter is in {args.output}.", file=sys.stderr)


def _export(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from hyperlora.export import commands, export

    pipe = open_pipeline(args, _ask, _say)
    adapter = pipe.adapt(args.description).scaled(args.strength)
    with tqdm(unit="B", unit_scale=True, desc="Export", disable=None) as bar:

        def report(done: float, size: float) -> None:
            bar.total = size
            bar.update(done - bar.n)

        export(pipe, adapter, args.format, args.output, report)
    if adapter.notice:
        _say(adapter.notice)
    _say(f"The adapter is in {args.output}.")
    folder = os.path.splitext(args.output)[0] if args.output.endswith(".zip") else args.output  # as it is unpacked
    for tool, text in commands(pipe, adapter, args.format, folder):
        print(f"# {tool}\n{text}\n")
    pipe.close()


def _base(args: argparse.Namespace) -> None:
    _quiet()
    from hyperlora.export import export_base

    export_base(args.model, args.output)
    _say(f"The base model is in {args.output}.")


def _chat(args: argparse.Namespace) -> None:
    if args.description is not None:
        check_description(args.description)
    _quiet()
    from hyperlora.pipe import NO_DESCRIPTION

    pipe = open_pipeline(args, _ask, _say)
    adapter = pipe.load_adapter(args.adapter) if args.description is None else pipe.adapt(args.description)
    if args.describe and adapter.description is None:
        raise UserError(NO_DESCRIPTION)
    if adapter.notice:
        _say(adapter.notice)
    messages: list[dict[str, str]] = []
    while line := _read_line():
        messages.append({"role": "user", "content": line.rstrip("\n")})
        try:
            stream = pipe.chat(messages, adapter=adapter, stream=True, describe=args.describe)
            for piece in stream:
                print(piece, end="", flush=True)
            print(flush=True)
            if stream.finish_reason == "length":
                print("The answer was cut here: it reached the limit of its length.", file=sys.stderr)
        except UserError as error:  # a bad line ends nothing
            print(error, file=sys.stderr)
            messages.pop()
            continue
        messages.append({"role": "assistant", "content": stream.text})
        if not pipe.multi_turn:
            messages.clear()
    pipe.close()


def _import(args: argparse.Namespace) -> None:
    from hyperlora.interop.text_to_lora import import_checkpoint

    order = args.order.replace(" ", "").split(",") if args.order is not None else None
    hyperlora = import_checkpoint(args.source, args.subfolder, args.revision, order)
    hyperlora.save_pretrained(args.output)
    print("The order of its module types is " + ", ".join(hyperlora.config.target_modules) + ".")
    if hyperlora.config.module_order_assumed:
        print(
            "This is an assumption, since the checkpoint does not say it: the first load with the base model settles "
            "it by the loss on a few examples, or name it with --order."
        )
    print(f"The hypernetwork is in {args.output}.", file=sys.stderr)


def _read_line() -> str:
    """The next line of standard input with its end, "" where there is none; a prompt is shown to people only."""
    if sys.stdin.isatty():
        print("> ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _ask(question: str) -> None:
    """Whether a large download is wanted; `UserError` where it is not, or nobody is there to say so."""
    if not sys.stdin.isatty():
        raise UserError(f"{question} Allow it with --yes.")
    print(f"{question} Download it now? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UserError("Nothing was downloaded.")


def _quiet() -> None:
    """No progress bars: what is loaded is small or local."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


if __name__ == "__main__":
    sys.exit(main())
