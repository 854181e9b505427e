"""What every decoder raises."""


class DecodeError(Exception):
    """A member's bytes are not what its field says. The message is the reason, in a few words."""
