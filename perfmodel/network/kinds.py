"""Whether the numbers of a [fabric] table are of the kind their family asks for: whole, any number, word or list.

It owns the sentences; what a family asks for is the signature of its class, and its values are checked there.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping

from perfmodel.network.fabric import family_class


def wrong_kinds(family: str, numbers: Mapping[str, object]) -> list[str]:
    """One sentence for each number of another kind than the family's class takes; other names are left alone."""
    parameters = inspect.signature(family_class(family)).parameters
    found = []
    for key, value in numbers.items():
        if key in parameters:
            sentence = _wrong(str(parameters[key].annotation), value)
            if sentence:
                found.append(f"fabric.{key} is {_shown(value)}: it must be {sentence}")
    return found


def _wrong(annotation: str, value: object) -> str:
    """What the value would have to be, "" where it is. annotation: the text of the parameter's type."""
    if isinstance(value, list | tuple):
        if "Sequence" not in annotation:
            return "one value, not a list"
        return next((sentence for sentence in (_wrong(annotation, entry) for entry in value) if sentence), "")
    if isinstance(value, str):
        return "" if "str" in annotation else "a number"
    if "int" not in annotation and "float" not in annotation:
        return "a word" if "str" in annotation else "" if isinstance(value, bool) else "true or false"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if "bool" in annotation else "a number"
    whole = "float" not in annotation
    return "a whole number" if whole and value != int(value) else ""


def _shown(value: object) -> str:
    return str(list(value)) if isinstance(value, tuple) else repr(value)
