"""Reads numbers with their sources out of the tables of a machine file, and collects everything that is wrong.

It owns what a quantity is (``{value, source, date, quality}``) and how a mistake is said; it does not own which
quantities a machine has (``machine``).
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Mapping
from typing import Any

ENTRY_KEYS = ("value", "source", "date", "quality")
YEAR = re.compile(r"\b(?:19|20)\d\d\b")


class Quantities:
    """Takes quantities out of nested TOML tables; mistakes go to ``problems``, so that one pass names them all.

    sources, dates, quality: by the dotted name of the number. A wrong or missing number reads as None (optional) or 1
    (required): nothing made of it may be used while there are problems.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        self.problems: list[str] = []
        self.sources: dict[str, str] = {}
        self.dates: dict[str, str] = {}
        self.quality: dict[str, float] = {}

    def table(self, path: str) -> Mapping[str, Any]:
        """The table of that dotted name; empty where it is absent, a problem where it is no table."""
        node: Any = self.values
        for name in path.split("."):
            node = node.get(name, {})
            if not isinstance(node, Mapping):
                self._once(f"{path} is {node!r}: it must be a table [{path}]")
                return {}
        return node

    def text(self, name: str) -> str:
        """A text of the top level."""
        value = self.values.get(name)
        if not isinstance(value, str) or not value:
            self._once(f"{name} is {value!r}: it must be a text")
            return ""
        return value

    def only(self, path: str, known: Collection[str]) -> None:
        """Every name in the table (the top level for "") is known, or a problem with the nearest known name."""
        for name in self.table(path) if path else self.values:
            if name not in known:
                full = f"{path}.{name}" if path else name
                near = difflib.get_close_matches(name, known, n=1)
                repair = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
                self._once(f"{full} is not a name of a machine file: {repair}")

    def entry(self, path: str, *, extra: Collection[str] = ()) -> Any:
        """The bare value of a quantity whose source is sound, None where the file has none or it is not sound."""
        parent, _, name = path.rpartition(".")
        entry = (self.table(parent) if parent else self.values).get(name)
        if entry is None:
            return None
        if not isinstance(entry, Mapping):
            self._once(
                f'{path} is {entry!r} without a source: write {{value = ..., source = "..."}}, '
                "with a source that starts with 'assumed' where nobody published it"
            )
            return None
        for key in entry:
            if key not in ENTRY_KEYS and key not in extra:
                self._once(f"{path} has the key {key!r}: known are {', '.join((*ENTRY_KEYS, *extra))}")
        source = entry.get("source")
        if not isinstance(source, str) or not source.strip():
            self._once(f"{path} has no source: name one, or write 'assumed: why'")
            return None
        self.sources[path] = source
        if "quality" in entry:
            if is_number(entry["quality"], zero=True):
                self.quality[path] = float(entry["quality"])
            else:
                self._once(f"{path} has the quality {entry['quality']!r}: it must be a number of 0 or more")
        self._date(path, entry)
        if entry.get("value") is None:
            self._once(f"{path} has the value None: it must be a number above 0")
        return entry.get("value")

    def optional(self, path: str, *, zero: bool = False, infinite: bool = False,
                 extra: Collection[str] = ()) -> float | None:  # fmt: skip
        """A number, or None where the file has none. ``zero``, ``infinite``: these are allowed too."""
        value = self.entry(path, extra=extra)
        if value is None:
            return None
        if not is_number(value, zero=zero, infinite=infinite):
            self._once(f"{path} has the value {value!r}: it must be a number above 0{' or 0' if zero else ''}")
            return None
        return float(value)

    def required(self, path: str, *, zero: bool = False, extra: Collection[str] = ()) -> float:
        """A number that the file must have."""
        value = self.optional(path, zero=zero, extra=extra)
        if value is None and not self._has(path):
            self._once(f'{path} is missing: add {{value = ..., source = "..."}}')
        return 1.0 if value is None else value

    def whole(self, path: str) -> int:
        """A required whole number."""
        value = self.required(path)
        if value != int(value):
            self._once(f"{path} is {value}: it must be a whole number")
        return int(value)

    def free(self, path: str) -> float | int | str | tuple[float | int | str, ...] | None:
        """A number (whole ones stay int, 0 allowed), a word, true or false, or a list of them; None where absent."""
        value = self.entry(path)
        if value is None:
            return None
        parts = value if isinstance(value, list) else [value]
        if not parts or not all(isinstance(part, str | bool) or is_number(part, zero=True) for part in parts):
            self._once(f"{path} has the value {value!r}: it must be a number of 0 or more, a word, or a list of them")
            return None
        return tuple(value) if isinstance(value, list) else value

    def _has(self, path: str) -> bool:
        parent, _, name = path.rpartition(".")
        return name in (self.table(parent) if parent else self.values)

    def _date(self, path: str, entry: Mapping[str, Any]) -> None:
        if "date" in entry:
            if not YEAR.search(str(entry["date"])):
                self._once(f"{path} has the date {entry['date']!r}: name at least the year, as in '2025' or '2025-06'")
            self.dates[path] = str(entry["date"])
        elif years := YEAR.findall(str(entry.get("source"))):
            self.dates[path] = years[-1]

    def _once(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)


def is_number(value: object, *, zero: bool = False, infinite: bool = False) -> bool:
    """Whether value is a number above 0 (``zero``: or 0), finite unless ``infinite``; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        return False
    return (value > 0 or (zero and value == 0)) and (infinite or math.isfinite(value))
