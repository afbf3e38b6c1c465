"""Text that comes in: from a person, a file, a command line, another program."""

import os
import sys

from hyperlora.errors import UserError

MAX_DESCRIPTION = 2_000  # characters


def check_text(text: object, what: str) -> str:
    """The text as it is; `UserError`, which begins with `what`, where it is none, or no file and no tokenizer takes it.

    That is where it holds a surrogate alone (U+D800 to U+DFFF): half of a character, as JSON and JavaScript can write
    it, or, from U+DC80 to U+DCFF, a byte that was not UTF-8, as Python reads command lines.
    """
    if not isinstance(text, str):
        raise UserError(f"{what} must be text, not {type(text).__name__}.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{what} holds {text[error.start]!a}, which is half a character or a byte that is not UTF-8: write that "
            "part anew, or leave it out."
        ) from None
    return text


def check_description(text: str) -> str:
    """The description without surrounding space; `UserError` where it is blank, wordless or too long."""
    text = check_text(text, "The description").strip()
    if not text:
        raise UserError("The description is empty: say in a sentence what the model should do.")
    if not any(character.isalnum() for character in text):
        raise UserError("The description has no letter or digit: say in words what the model should do.")
    if len(text) > MAX_DESCRIPTION:
        raise UserError(
            f"The description has {len(text):,} characters; the limit is {MAX_DESCRIPTION:,}: "
            "say in a sentence or two what the model should do."
        )
    return text


def command_line(arguments: list[str] | None = None) -> list[str]:
    """The arguments, by default those of this process; `UserError` where they hold what `check_text` refuses."""
    arguments = sys.argv[1:] if arguments is None else arguments
    check_text(" ".join(arguments), "The command line")
    return arguments


def open_streams() -> None:
    """Standard input, output and errors for text of any kind, and nowhere in place of those that are closed.

    A byte that is not UTF-8 is read as `check_text` finds it; a character that a terminal does not have is escaped.
    """
    for name, mode, errors in (
        ("stdin", "r", "surrogateescape"),
        ("stdout", "w", "backslashreplace"),
        ("stderr", "w", "backslashreplace"),
    ):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (open until the process ends)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=errors)
