"""What every decoder raises."""


class DecodeError(Exception):
    """A member's bytes are not what its field says. The message is the reason, in a few words."""


class SilentError(DecodeError):
    """A clip without an audio track: its sound is absent, and nothing is damaged."""


class StreamError(DecodeError):
    """Members of a series of several streams are not what it says. The message is their names, then the reason.

    Args:
        members: those at fault; all of them where it is what they are together.
        reason: in a few words.
    """

    def __init__(self, members: tuple[str, ...], reason: str) -> None:
        super().__init__(f"{', '.join(members)}: {reason}")
        self.members = members
        self.reason = reason
