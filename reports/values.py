"""Numbers as cells of tables: text for people, the number in SI units for sorting and CSV. It owns no number.

What is not known is "n/a" without a number. Ratios keep their number as a fraction's percent, as the column says.
"""

from __future__ import annotations

from reports import wording
from reports.document import Tone, Value

NOT_KNOWN = Value(text="n/a")


def time(value_s: float | None, tone: Tone = "") -> Value:
    """A time; number in seconds."""
    return NOT_KNOWN if value_s is None else Value(text=wording.seconds(value_s), number=value_s, tone=tone)


def percent(fraction: float | None, tone: Tone = "", digits: int = 1) -> Value:
    """A fraction as percent; number in percent."""
    if fraction is None:
        return NOT_KNOWN
    return Value(text=wording.percent(fraction, digits), number=100 * fraction, tone=tone)


def signed_percent(fraction: float | None, tone: Tone = "") -> Value:
    """A change or an error with its sign; number in percent."""
    if fraction is None:
        return NOT_KNOWN
    return Value(text=wording.signed_percent(fraction), number=100 * fraction, tone=tone)


def percent_range(low: float | None, high: float | None, digits: int = 1) -> Value:
    """Two ends of an interval of fractions as percent."""
    if low is None or high is None:
        return NOT_KNOWN
    text = f"{wording.percent(low, digits).removesuffix(' %')} to {wording.percent(high, digits)}"
    return Value(text=text, number=100 * low, high=100 * high)


def time_range(low_s: float, high_s: float) -> Value:
    """Two ends of an interval of times [s]."""
    return Value(text=f"{wording.seconds(low_s)} to {wording.seconds(high_s)}", number=low_s, high=high_s)


def count(number: float | None, tone: Tone = "") -> Value:
    """A count of things."""
    return NOT_KNOWN if number is None else Value(text=f"{number:,.0f}", number=number, tone=tone)


def plain(number: float | None, tone: Tone = "") -> Value:
    """A dimensionless number, or one whose unit the column names, with three significant digits."""
    if number is None:
        return NOT_KNOWN
    text = f"{float(f'{number:.3g}'):,.0f}" if abs(number) >= 1000 else f"{number:.3g}"
    return Value(text=text, number=number, tone=tone)


def memory(value_bytes: float | None, tone: Tone = "") -> Value:
    """An amount of memory; number in bytes."""
    return (
        NOT_KNOWN if not value_bytes else Value(text=wording.binary_bytes(value_bytes), number=value_bytes, tone=tone)
    )


def flops_rate(flops_per_s: float | None, tone: Tone = "") -> Value:
    """A rate of FLOPs; number in FLOP/s."""
    if flops_per_s is None:
        return NOT_KNOWN
    return Value(text=wording.flops_rate(flops_per_s), number=flops_per_s, tone=tone)
