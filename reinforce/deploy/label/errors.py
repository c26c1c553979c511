"""The one error of this package."""


class LabelError(ValueError):
    """What a person asked for or gave that cannot be used; the message is one line that says what to do."""
