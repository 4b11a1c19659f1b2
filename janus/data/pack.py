"""From files to a store: reading, checking and writing in one stream, and the cache for files used directly.

It does not own any of the three steps (``reading.py``, ``labels.py``, ``store.py``). Never imports torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from janus.data.labels import LabelChecker, LabelLimits, LabelReport, sound_structures
from janus.data.problems import DataError, Problem
from janus.data.reading import Entry, LabelKeys, read_entries, require_file
from janus.data.store import StructureStore, write_store
from janus.data.store_arrays import META_NAME
from janus.data.structure import Structure
from janus.errors import UserError

CACHE_SUFFIX = ".cache.store"


def pack_files(
    sources: Sequence[Path | str],
    target: Path | str,
    *,
    cutoff_angstrom: float,
    line_cutoff_angstrom: float,
    keys: LabelKeys | None = None,
    limits: LabelLimits | None = None,
    skip_bad: bool = False,
    replace: bool = False,
    on_entry: Callable[[Entry], None] | None = None,
) -> tuple[StructureStore, LabelReport]:
    """Read, check and pack files into one store; returns it with the account of what was left out or warned about.

    Without skip_bad the first broken rule stops the pack (DataError) and nothing is written. on_entry is called
    with every entry read (progress bars).
    """
    if not sources:
        raise UserError("no file to pack: name at least one")
    for source in sources:
        require_file(Path(source))
    report, checker = LabelReport(), LabelChecker(limits)

    def structures() -> Iterator[Structure]:
        for source in sources:
            entries = read_entries(source, keys)
            yield from sound_structures(entries, checker, report, skip_bad=skip_bad, on_entry=on_entry)
            _require_labels(report)
        if report.num_bad and report.num_bad == report.num_entries:
            rules = ", ".join(f"{rule}: {count}" for rule, count in sorted(report.count_of_rule.items()))
            raise UserError(f"all {report.num_entries} structures break a rule ({rules}), so nothing is packed: "
                            "list them with `janus data check`")  # fmt: skip

    store = write_store(
        target, structures(), cutoff_angstrom=cutoff_angstrom, line_cutoff_angstrom=line_cutoff_angstrom,
        replace=replace, sources=[describe_source(Path(source)) for source in sources],
        skipped=lambda: report.to_mapping() | {"skip_bad": skip_bad},
    )  # fmt: skip
    return store, report


def _require_labels(report: LabelReport) -> None:
    """A file without a single label is refused even with --skip-bad: leaving all of it out cannot be meant."""
    without: Iterable[Problem] = (problem for problem in report.problems if problem.rule == "no-labels")
    for problem in without:
        raise DataError(problem, "name its labels with --energy-key and --forces-key")


def describe_source(path: Path) -> dict[str, Any]:
    """Name, size and hash of a source file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def open_or_pack(
    path: Path | str, cutoff_angstrom: float, line_cutoff_angstrom: float,
    *, on_entry: Callable[[Entry], None] | None = None,
) -> StructureStore:  # fmt: skip
    """Open a store, or the cached store of a file, with counts for these cutoffs.

    A store with other cutoffs is recounted in memory. A file is packed once into FILE.cache.store beside it, with the
    default rules, and again when its content or the cutoffs change. Call it on one rank first, then on the others.
    """
    path = Path(path)
    if path.is_dir() or path.suffix == ".store":
        return StructureStore.open(path).recount(cutoff_angstrom, line_cutoff_angstrom)
    require_file(path)
    cache = path.with_name(path.name + CACHE_SUFFIX)
    if (cache / META_NAME).is_file():
        store = _open_if_sound(cache)
        cutoffs = (cutoff_angstrom, line_cutoff_angstrom)
        fits = store is not None and (store.cutoff_angstrom, store.line_cutoff_angstrom) == cutoffs
        if store is not None and fits and list(store.meta["sources"]) == [describe_source(path)]:
            return store
    store, _ = pack_files([path], cache, cutoff_angstrom=cutoff_angstrom, line_cutoff_angstrom=line_cutoff_angstrom,
                          replace=True, on_entry=on_entry)  # fmt: skip
    return store


def _open_if_sound(cache: Path) -> StructureStore | None:
    """The cached store, or None when it is damaged: it is derived data and is made again from its source."""
    try:
        return StructureStore.open(cache)
    except UserError:
        return None
