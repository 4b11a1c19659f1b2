"""Model configuration and the tools every configuration shares: validation, TOML, ``--section.field=value``.

It does not own the trainer's own settings (``janus/train/config.py``). Importable without torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from janus.errors import UserError

Section = TypeVar("Section")

LARGEST_CUTOFF_ANGSTROM = 30.0  # assumed: five times what potentials use; pairs grow with its cube


@dataclass(frozen=True, kw_only=True)
class ExpertConfig:
    """Mixture-of-experts sizes of MatRIS-MoE. Hidden widths are of one routed expert.

    The paper (arXiv 2604.15821) gives total and active parameters and top-k only: the number of experts, the
    hidden widths and the shared experts are this project's choice, made so that its totals are met within 2 %.
    """

    num_experts: int = 8
    top_k: int = 2
    message_hidden: int = 64
    feature_hidden: int = 32
    num_shared_experts: int = 1

    def __post_init__(self) -> None:
        require_positive(self, "num_experts", "top_k", "message_hidden", "feature_hidden")
        if self.top_k > self.num_experts:
            raise UserError(
                f"experts.top_k {self.top_k} exceeds experts.num_experts {self.num_experts}: use a smaller one"
            )
        if self.num_shared_experts < 0:
            raise UserError(f"experts.num_shared_experts {self.num_shared_experts} is negative: use 0 or more")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Architecture of one potential.

    family: ``matris`` (arXiv 2603.02002) or ``matris-moe`` (arXiv 2604.15821).
    compat: follow the original MatRIS to the letter, defects included (see docs/model.md).
    cutoff_angstrom: pair cutoff of the atom graph; line_cutoff_angstrom: cutoff of bonds that form angles.
    angle_width: channels of the angle features (matris-moe; matris uses ``width``).
    """

    family: Literal["matris", "matris-moe"] = "matris"
    num_blocks: int = 2
    width: int = 64
    cutoff_angstrom: float = 6.0
    line_cutoff_angstrom: float = 4.5
    num_radial: int = 7
    num_angular: int = 7
    num_elements: int = 94
    compat: bool = False
    num_heads: int = 4
    angle_width: int = 32
    experts: ExpertConfig | None = None

    def __post_init__(self) -> None:
        require_positive(self, "num_blocks", "width", "cutoff_angstrom", "line_cutoff_angstrom", "num_radial",
                         "num_angular", "num_elements", "num_heads", "angle_width")  # fmt: skip
        if self.family not in ("matris", "matris-moe"):
            raise UserError(f"model.family {self.family!r} is not known: use 'matris' or 'matris-moe'")
        require_cutoffs(self.cutoff_angstrom, self.line_cutoff_angstrom)
        if self.family == "matris-moe":
            if self.experts is None:
                raise UserError("model.family 'matris-moe' needs a [model.experts] section: add one or use 'matris'")
            if self.width % self.num_heads:
                raise UserError(
                    f"model.num_heads {self.num_heads} does not divide model.width {self.width}: use a divisor"
                )
            if self.compat:
                raise UserError("model.compat is for family 'matris' only: set it to false for 'matris-moe'")
        elif self.experts is not None:
            raise UserError("model.experts is for family 'matris-moe' only: remove the section or change the family")
        if self.compat and (self.num_angular != 7 or self.num_elements != 94):
            raise UserError("model.compat needs num_angular = 7 and num_elements = 94, the original's values")


def require_cutoffs(cutoff_angstrom: float, line_cutoff_angstrom: float) -> None:
    """Raise UserError unless 0 < line cutoff <= pair cutoff <= LARGEST_CUTOFF_ANGSTROM (bonds are edges too)."""
    if not 0 < line_cutoff_angstrom <= cutoff_angstrom <= LARGEST_CUTOFF_ANGSTROM:
        raise UserError(
            f"cutoff {cutoff_angstrom} (pairs) and line cutoff {line_cutoff_angstrom} (angles), in angstrom: "
            f"need 0 < line cutoff <= cutoff <= {LARGEST_CUTOFF_ANGSTROM:g}"
        )


def require_positive(section: Any, *names: str) -> None:
    """Raise UserError for the first named field of a config section that is not above zero."""
    for name in names:
        value = getattr(section, name)
        if not value > 0:
            raise UserError(f"{name} is {value}: it must be above 0")


def _dataclass_in(annotation: Any) -> type | None:
    """The dataclass inside an annotation like ``ExpertConfig`` or ``ExpertConfig | None``, else None."""
    options = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    return next((o for o in options if isinstance(o, type) and dataclasses.is_dataclass(o)), None)


def _convert(value: Any, annotation: Any, where: str) -> Any:
    """A TOML value as the annotated type; integers pass for floats, lists for tuples. Raises UserError."""
    if isinstance(annotation, types.UnionType):
        options = typing.get_args(annotation)
        if value is None and type(None) in options:
            return None
        known = [option for option in options if option is not type(None)]
        is_list = isinstance(value, list | tuple)
        annotation = next((option for option in known if (typing.get_origin(option) is tuple) == is_list), known[0])
    origin = typing.get_origin(annotation)
    if origin is Literal:
        if value not in typing.get_args(annotation):
            choices = ", ".join(repr(choice) for choice in typing.get_args(annotation))
            raise UserError(f"{where} is {value!r}: use one of {choices}")
        return value
    if origin is tuple:
        item = typing.get_args(annotation)[0]
        if not isinstance(value, list | tuple):
            raise UserError(f"{where} is {value!r}: it must be a list")
        return tuple(_convert(entry, item, where) for entry in value)
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if annotation is Path and isinstance(value, str):
        return Path(value)
    if not isinstance(value, annotation) or (annotation is int and isinstance(value, bool)):
        raise UserError(f"{where} is {value!r}: it must be of type {annotation.__name__}")
    return value


def from_mapping(section: type[Section], values: Mapping[str, Any], where: str = "") -> Section:
    """Build a config dataclass from nested plain values. Unknown names raise UserError with the nearest known."""
    hints = typing.get_type_hints(section)
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        path = f"{where}.{name}" if where else name
        if name not in hints:
            near = difflib.get_close_matches(name, hints, n=1)
            repair = f"did you mean {near[0]!r}?" if near else f"known names: {', '.join(hints)}"
            raise UserError(f"unknown setting {path!r}: {repair}")
        nested = _dataclass_in(hints[name])
        if nested is not None and isinstance(value, Mapping):
            arguments[name] = from_mapping(nested, value, path)
        else:
            arguments[name] = _convert(value, hints[name], path)
    return section(**arguments)


def to_mapping(config: Any) -> dict[str, Any]:
    """Nested plain values of a config dataclass, without None (TOML has none); reads back equal."""
    result: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value is None:
            continue
        if dataclasses.is_dataclass(value):
            value = to_mapping(value)
        elif isinstance(value, tuple):
            value = list(value)
        elif isinstance(value, Path):
            value = str(value)
        result[field.name] = value
    return result


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'
    if isinstance(value, list):
        return "[" + ", ".join(_toml_value(entry) for entry in value) + "]"
    return repr(value)


def to_toml(values: Mapping[str, Any], prefix: str = "") -> str:
    """Write nested mappings of plain values as TOML text (the standard library only reads it)."""
    plain = {name: value for name, value in values.items() if not isinstance(value, Mapping)}
    nested = {name: value for name, value in values.items() if isinstance(value, Mapping)}
    lines = [f"[{prefix}]"] if prefix and (plain or not nested) else []
    lines += [f"{name} = {_toml_value(value)}" for name, value in plain.items()]
    text = "\n".join(lines) + "\n" if lines else ""
    for name, value in nested.items():
        text += "\n" + to_toml(value, f"{prefix}.{name}" if prefix else name)
    return text


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file. Raises UserError when it is missing or malformed."""
    try:
        with path.open("rb") as stream:
            return tomllib.load(stream)
    except FileNotFoundError:
        raise UserError(f"no file {path}: check the path") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML ({error}): correct that line") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the path and its permissions") from None


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply ``section.field=value`` words (leading dashes allowed) to nested plain values; returns a new mapping.

    A value is read as TOML and, failing that, taken as a string: ``--optimizer.learning_rate=1e-3``.
    """
    result = {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}
    for word in overrides:
        name, equals, text = word.lstrip("-").partition("=")
        if not equals or not name:
            raise UserError(f"cannot read {word!r}: write --section.field=value")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        *sections, field = name.split(".")
        target = result
        for section in sections:
            inner = target.get(section)
            target[section] = dict(inner) if isinstance(inner, Mapping) else {}
            target = target[section]
        target[field] = value
    return result
