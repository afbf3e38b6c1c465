"""The one exception that users are meant to read, and how values and other errors look in it."""


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
