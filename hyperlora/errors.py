"""The one exception that users are meant to read."""


class UserError(ValueError):
    """A mistake in the input; its message is one sentence that says what is wrong and what to do."""
