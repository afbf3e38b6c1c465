"""The one exception that users are meant to read, and how values and other errors look in it."""

import logging
from traceback import format_tb

UNEXPECTED = "Something went wrong on the server; its log says what. Please try again."
log = logging.getLogger(__name__)


class UserError(ValueError):
    """A mistake in the input; its message is one sentence that says what is wrong and what to do."""


class Busy(UserError):
    """There is nothing wrong with the input: others are in front, and it is to be tried again."""


def shown(value: object) -> str:
    """The first 80 characters of a value as Python writes it, whatever it is."""
    try:
        return repr(value)[:80]
    except Exception:  # such as a whole number of more than 4,300 digits
        return f"a {type(value).__name__} that cannot be written"


def first_line(error: BaseException) -> str:
    """What an error says, in a line: libraries raise many kinds, and the reader needs one sentence."""
    return str(error).strip().split("\n")[0] or type(error).__name__


def sentence(error: Exception) -> str:
    """What a visitor reads of an error. Where one that is no `UserError` came from goes to the log, but not what it
    says, which may quote what the visitor wrote."""
    if isinstance(error, UserError):
        return str(error)
    log.error("Unexpected %s:\n%s", type(error).__name__, "".join(format_tb(error.__traceback__)))
    return UNEXPECTED
