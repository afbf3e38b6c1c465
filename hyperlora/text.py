"""Text that comes in: from a person, a file, a command line, another program."""

from hyperlora.errors import UserError


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
