"""Writes fitted constants as the module ``fitted``: `janus validate collectives --fit --write FILE.py`."""

from __future__ import annotations

import math
from collections.abc import Mapping

from perfmodel.network.routes import Transport
from perfmodel.network.validation import FittedStack, Stack

HEAD = '''"""Constants of communication libraries, fitted to measured collectives. Written by ``fitted_text``.

It owns the numbers only. Source: HLC-Lab/pico @ 413bc5d and HLC-Lab/CRAB @ 46b21b8 (both MIT), fitted by ``fit`` with
its priors; what each constant means: ``routes.Transport``; how well they hold: docs/validation_collectives.md.
"""

from __future__ import annotations

from perfmodel.network.routes import Transport
from perfmodel.network.validation import FittedStack, Stack

'''


def _number(value: float) -> str:
    return 'float("inf")' if math.isinf(value) else f"{value:.4g}"


def _transport(transport: Transport) -> str:
    default = Transport()
    entries = ", ".join(
        f"{name}={_number(value)}" for name, value in vars(transport).items() if value != getattr(default, name)
    )
    return f"Transport({entries})"


def fitted_text(fits: Mapping[Stack, FittedStack]) -> str:
    """The module's text (to be formatted by ruff)."""
    lines = [HEAD, "FITTED: dict[Stack, FittedStack] = {\n"]
    for stack, one in sorted(fits.items()):
        lines.append(
            f"    {stack!r}: FittedStack(\n        small_scales={_transport(one.small_scales)},\n"
            f"        all_scales={_transport(one.all_scales)},\n        limit={one.limit},\n"
            f"        largest={one.largest},\n        jobs={dict(one.jobs)!r},\n    ),\n"
        )
    return "".join([*lines, "}\n"])
