"""A call of the command line that is wrong → one paragraph that says what to call instead."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ray_mm.config.explain import all_keys, nearest
from ray_mm.config.load import JOB_KINDS


def wrong_call(command: str, message: str, arguments: Sequence[str], verbs: list[str]) -> str:
    """What to say.

    Args:
        command: as far as it was understood, such as ``ray-mm run``.
        message: of the parser.
        arguments: of the call.
        verbs: all that there are.
    """
    if found := re.match(r"No such command '(.+?)'", message):
        near = nearest(found[1], verbs)
        hint = f"did you mean {near!r}? Verbs" if near else "verbs"
        return f"{_verb(command)}there is no verb {found[1]!r}; {hint} are {', '.join(verbs)}."
    if found := re.match(r"No such option:? '?(-[^\s']*)", message):
        return f"{_verb(command)}there is no option {found[1]}; {_instead(command, found[1], arguments)}"
    text = message[:1].lower() + message[1:].rstrip(".")
    return f"{_verb(command)}{text}; {command} --help says what it takes."


def _verb(command: str) -> str:
    verb = command.partition(" ")[2]
    return f"{verb}: " if verb else ""


def _instead(command: str, option: str, arguments: Sequence[str]) -> str:
    name = option.lstrip("-").replace("-", "_").partition("=")[0]
    keys = [key for model in JOB_KINDS.values() for key in all_keys(model) if key.rpartition(".")[2] == name]
    if not keys or command.split()[-1] not in ("run", "check", "submit", "doctor"):
        return f"{command} --help shows those that it has."
    value = "…"
    for number, argument in enumerate(arguments):
        if argument == option and number + 1 < len(arguments):
            value = arguments[number + 1]
        elif argument.startswith(f"{option}="):
            value = argument.partition("=")[2]
    return f"a setting is overridden with --set {keys[0]}={value}."
