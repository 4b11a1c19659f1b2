"""Which rows are alive when: the tensors that autograd keeps in a second-order step, as numbers per row.

It owns the tables; what they come to in bytes is in ``memory``. Nothing here is fitted: every number was counted off
the live tensors of real steps on a CPU with the fused operators (every storage that is alive, by its rows, at each
moment; two values of each width tell which width a number belongs to); tests/perfmodel/test_live_rows.py counts again.
Index tensors of 8 bytes count as two numbers. Legend of the expressions, all per row:

    d width   a angle width   r radial   s angular basis functions   h heads   a bare number: so many numbers of 4 bytes
    m, f hidden channels of one expert (message, feature)            M, F those of all shared experts together

FE keeps inputs of what it computes, FF their gradients. BF climbs from the first block to the last: of each it frees
what FF kept and makes gradients of what FE kept, which wait for BE. So the rows are most either in BF of the first
block or, where BF leaves more than it frees, of the last; afterwards they only fall.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from janus.config import ModelConfig
from perfmodel.products import Counts, RowKind

ROW_KINDS: tuple[RowKind, ...] = (
    "structures", "atoms", "ghosts", "edges", "edge_pairs", "bonds", "bond_pairs", "angles", "message_copies",
    "feature_copies",
)  # fmt: skip
Table = Mapping[str, str]
Numbers = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class _Family:
    """Tables of one family. Each is row kind -> expression; those named *_block are of one block.

    energies, block_energies: kept by FE; outside, block: by FE and FF, outside blocks and of each block.
    first: change in BF of the first block; step: further change with each block that BF has passed; once: of the last.
    crowds: change where top_k is large, when copies of tokens outweigh the rest.
    Recomputed: stream: kept of each block between phases; remade: alive beside it in BF of one block; remade_last: of
    the last; back: in BE of one block. remade_energies, remade_outside: kept outside blocks by FE, and by FE and FF.
    scratch: work tensors that fused operators keep.
    """

    energies: Table
    block_energies: Table
    outside: Table
    block: Table
    first: Table
    step: Table
    once: Table
    crowds: Table
    remade_energies: Table
    remade_outside: Table
    stream: Table
    remade: Table
    remade_last: Table
    back: Table
    scratch: Table


_MATRIS = _Family(
    energies={"structures": "10", "atoms": "12 d + 14", "edges": "-1 d + 3", "edge_pairs": "2 d + 3 r + 32",
              "bonds": "6", "bond_pairs": "3 r + 27", "angles": "3 s + 7"},
    block_energies={"atoms": "17 d", "edges": "13 d", "edge_pairs": "13 d", "bond_pairs": "12 d", "angles": "15 d"},
    outside={"structures": "21", "atoms": "33 d + 21", "edges": "-3 d + 3", "edge_pairs": "5 d + 7 r + 59",
             "bonds": "18", "bond_pairs": "7 r + 50", "angles": "5 s + 6"},
    block={"atoms": "48 d", "edges": "21 d", "edge_pairs": "28 d", "bond_pairs": "37 d", "angles": "30 d"},
    first={"atoms": "9", "edges": "1", "edge_pairs": "-1 d + -1 r", "bonds": "-8", "bond_pairs": "-2 d + -1 r",
           "angles": "3 d + 8"},
    step={"atoms": "-22 d", "edges": "5 d", "edge_pairs": "-10 d", "bond_pairs": "-18 d", "angles": "-2 d"},
    once={"atoms": "-10 d", "edges": "4 d", "edge_pairs": "-6 d", "bond_pairs": "-11 d", "angles": "-2 d"},
    crowds={},
    remade_energies={"structures": "10", "atoms": "12 d + 14", "edges": "3", "edge_pairs": "3 d + 3 r + 32",
                     "bonds": "6", "bond_pairs": "3 r + 27", "angles": "1 d + 3 s + 7"},
    remade_outside={"structures": "21", "atoms": "37 d + 21", "edges": "3", "edge_pairs": "6 d + 7 r + 59",
                    "bonds": "18", "bond_pairs": "7 r + 50", "angles": "2 d + 5 s + 6"},
    stream={"atoms": "2 d", "edge_pairs": "2 d", "angles": "2 d"},
    remade={"atoms": "49 d + 9", "edges": "21 d + 3", "edge_pairs": "27 d", "bonds": "-8", "bond_pairs": "38 d",
            "angles": "32 d + 8"},
    remade_last={"atoms": "48 d + 9", "edges": "18 d + 3", "edge_pairs": "25 d", "bonds": "-8", "bond_pairs": "35 d",
                 "angles": "30 d + 10"},
    back={"atoms": "-19 d", "edges": "13 d", "edge_pairs": "16 d", "bonds": "-8", "bond_pairs": "12 d",
          "angles": "14 d + 6"},
    scratch={"angles": "2 d"},
)  # fmt: skip

_COMPAT = _Family(
    energies={"structures": "10", "atoms": "12 d + 14", "edges": "-1 d + 2", "edge_pairs": "2 d + 3 r + 20",
              "bonds": "6", "bond_pairs": "3 r + 15", "angles": "20"},
    block_energies={"atoms": "11 d", "edges": "17 d", "edge_pairs": "13 d", "bond_pairs": "6 d", "angles": "19 d"},
    outside={"structures": "21", "atoms": "37 d + 23", "edges": "-3 d + 2", "edge_pairs": "5 d + 7 r + 38",
             "bonds": "18", "bond_pairs": "7 r + 28", "angles": "41"},
    block={"atoms": "29 d", "edges": "37 d", "edge_pairs": "28 d", "bond_pairs": "19 d", "angles": "46 d"},
    first={"atoms": "9", "edge_pairs": "-1 d + -1 r", "bonds": "-8", "bond_pairs": "-4 d + -1 r",
           "angles": "5 d + -11"},
    step={"atoms": "-13 d", "edges": "-3 d", "edge_pairs": "-10 d", "bond_pairs": "-10 d", "angles": "-10 d"},
    once={"atoms": "1 d", "edges": "8 d", "edge_pairs": "-4 d", "angles": "-14 d"},
    crowds={},
    remade_energies={"structures": "10", "atoms": "12 d + 14", "edges": "3", "edge_pairs": "3 d + 3 r + 32",
                     "bonds": "6", "bond_pairs": "3 r + 27", "angles": "1 d + 23"},
    remade_outside={"structures": "21", "atoms": "41 d + 23", "edges": "3", "edge_pairs": "6 d + 7 r + 50",
                    "bonds": "18", "bond_pairs": "7 r + 40", "angles": "2 d + 44"},
    stream={"atoms": "2 d", "edge_pairs": "2 d", "angles": "2 d"},
    remade={"atoms": "29 d + 9", "edges": "37 d", "edge_pairs": "25 d", "bonds": "-8", "bond_pairs": "15 d",
            "angles": "50 d + -11"},
    remade_last={"atoms": "29 d + 9", "edges": "34 d", "edge_pairs": "25 d", "bonds": "-8", "bond_pairs": "15 d",
                 "angles": "48 d + -11"},
    back={"atoms": "-20 d", "edges": "17 d", "edge_pairs": "17 d", "bonds": "-8", "bond_pairs": "8 d",
          "angles": "19 d + -11"},
    scratch={"angles": "2 d"},
)  # fmt: skip

_MOE = _Family(
    energies={"structures": "10", "atoms": "12 d + 14", "edges": "3", "edge_pairs": "3 d + 3 r + 32",
              "bonds": "1 r + 6", "bond_pairs": "2 r + 15", "angles": "3 s + 2 a + 2"},
    block_energies={"atoms": "7 d + 4 F + 1 h + 8", "edges": "7 d + 4 M + 5 h + 6", "bonds": "1 d + 4 a",
                    "angles": "5 a", "message_copies": "2 d + 4 m + 5", "feature_copies": "2 d + 4 f + 5"},
    outside={"structures": "21", "atoms": "32 d + 21", "edges": "3", "edge_pairs": "7 d + 7 r + 59",
             "bonds": "1 r + 18", "bond_pairs": "6 r + 28", "angles": "5 s + 4 a"},
    block={"atoms": "19 d + 12 F + 1 h + 8", "edges": "14 d + 12 M + 12 h + 6", "bonds": "2 d + 12 a",
           "angles": "10 a", "message_copies": "4 d + 12 m + 5", "feature_copies": "4 d + 12 f + 5"},
    first={"atoms": "9", "edges": "10 d + 5", "edge_pairs": "-2 d + -2 r", "bonds": "-1 d + 1 r + -6 a + -8",
           "bond_pairs": "-2 r", "angles": "4"},
    step={"atoms": "-9 d + -5 F + 1 h", "edges": "-2 d + -5 M + -2 h + 1", "bonds": "-1 d + -6 a",
          "message_copies": "-2 d + -5 m + 1", "feature_copies": "-2 d + -5 f + 1"},
    once={"atoms": "3 d", "edges": "-1 d", "bonds": "-1 r", "angles": "-1 a"},
    crowds={"edges": "-8 d + -4", "message_copies": "1 d + 2 m"},
    remade_energies={"structures": "10", "atoms": "12 d + 14", "edges": "3", "edge_pairs": "3 d + 3 r + 32",
                     "bonds": "1 r + 6", "bond_pairs": "2 r + 15", "angles": "3 s + 2 a + 2"},
    remade_outside={"structures": "21", "atoms": "37 d + 21", "edges": "-1 d + 3", "edge_pairs": "7 d + 7 r + 59",
                    "bonds": "1 r + 18", "bond_pairs": "6 r + 28", "angles": "5 s + 4 a"},
    stream={"atoms": "2 d", "edges": "2 d"},
    remade={"atoms": "17 d + 11 F + 1 h + 17", "edges": "26 d + 12 M + 12 h + 13", "edge_pairs": "-2 d + -2 r",
            "bonds": "1 d + 3 r + 6 a + -8", "bond_pairs": "-2 r", "angles": "12 a + 4",
            "message_copies": "4 d + 12 m + 5", "feature_copies": "3 d + 11 f + 5"},
    remade_last={"atoms": "17 d + 11 F + 1 h + 17", "edges": "26 d + 12 M + 12 h + 13", "edge_pairs": "-2 d + -2 r",
                 "bonds": "1 d + 3 r + 6 a + -8", "bond_pairs": "-2 r", "angles": "12 a + 4",
                 "message_copies": "4 d + 12 m + 5", "feature_copies": "3 d + 11 f + 5"},
    back={"atoms": "-30 d + 9", "edges": "11 d + 4 M + 7 h + 7", "edge_pairs": "-2 d + -2 r",
          "bonds": "1 d + 1 r + 4 a + -8", "bond_pairs": "-2 r", "angles": "5 a + 4",
          "message_copies": "2 d + 4 m + 5", "feature_copies": "2"},
    scratch={"angles": "2 a"},
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class LiveRows:
    """Numbers per row of each kind (columns ``ROW_KINDS``) alive at moments of a step [M,K].

    moments: (name, phase, blocks whose parameters' whole gradients wait) of each row. after_forces, after_energies [K]:
    at the end of FF and of FE; scratch [K]: work tensors that fused operators keep between calls.
    """

    moments: tuple[tuple[str, str, int], ...]
    numbers: Numbers
    after_energies: Numbers
    after_forces: Numbers
    scratch: Numbers


@lru_cache(maxsize=64)
def live_rows(model: ModelConfig, *, recompute: bool) -> LiveRows:
    """The moments of a step at which rows, or rows and gradients together, can be most."""
    family = _MOE if model.family == "matris-moe" else _COMPAT if model.compat else _MATRIS

    def read(table: Table) -> Numbers:
        return _numbers(table, model)

    energies = read(family.energies)
    if recompute:
        kept = read(family.remade_outside) + model.num_blocks * read(family.stream)
        energies = read(family.remade_energies) + model.num_blocks * read(family.stream) / 2
        rows = _recomputed(family, model, kept)
    else:
        kept = read(family.outside) + model.num_blocks * read(family.block)
        energies = energies + model.num_blocks * read(family.block_energies)
        rows = _plain(family, model, kept)
    return LiveRows(
        moments=tuple(moment for moment, _ in rows), numbers=np.stack([numbers for _, numbers in rows]),
        after_energies=energies, after_forces=kept, scratch=read(family.scratch),
    )  # fmt: skip


Rows = list[tuple[tuple[str, str, int], Numbers]]


def _plain(family: _Family, model: ModelConfig, kept: Numbers) -> Rows:
    """Everything is kept: most in BF, of the first block or of the last."""
    blocks = model.num_blocks
    first = kept + _numbers(family.first, model)
    last = first + (blocks - 1) * _numbers(family.step, model)
    if blocks > 1:
        last = last + _numbers(family.once, model)
    crowds, block = _numbers(family.crowds, model), _numbers(family.block, model)
    rows: Rows = [(("BF of the first block", "BF", 1), first), (("BF of the last block", "BF", blocks), last)]
    if family.crowds:
        rows += [(("BF of the first block, copies", "BF", 1), first + crowds),
                 (("BF of the last block, copies", "BF", blocks), last + crowds)]  # fmt: skip
    return [*rows, (("BE of the last block", "BE", blocks), np.maximum(last - block, 0.0))]


def _recomputed(family: _Family, model: ModelConfig, kept: Numbers) -> Rows:
    """Blocks are made again one by one: most in the second pass of one block."""
    blocks = model.num_blocks
    remade, crowds = kept + _numbers(family.remade, model), _numbers(family.crowds, model)
    rows: Rows = [(("BF of a block", "BF", max(1, blocks - 1)), remade),
                  (("BF of the last block", "BF", blocks), kept + _numbers(family.remade_last, model))]  # fmt: skip
    if family.crowds:
        rows.append((("BF of a block, copies", "BF", blocks), remade + crowds))
    return [*rows, (("BE of a block", "BE", blocks), np.maximum(kept + _numbers(family.back, model), 0.0))]


def row_vector(model: ModelConfig, counts: Counts) -> Numbers:
    """Rows of every kind [K] of one micro-batch on one rank."""
    top_k = model.experts.top_k if model.experts is not None else 0
    return np.array([counts.rows(kind, top_k) for kind in ROW_KINDS])


def _numbers(table: Table, model: ModelConfig) -> Numbers:
    """Numbers per row of each kind [K]."""
    widths = _widths(model)
    return np.array([_value(table[kind], widths) if kind in table else 0.0 for kind in ROW_KINDS])


def _value(expression: str, widths: Mapping[str, float]) -> float:
    """Of "14 d + -2 h + 7"."""
    terms = (term.split() for term in expression.split(" + "))
    return sum(float(number) * widths[symbol[0] if symbol else ""] for number, *symbol in terms)


def _widths(model: ModelConfig) -> dict[str, float]:
    experts = model.experts
    return {
        "": 1.0, "d": model.width, "a": model.angle_width, "r": model.num_radial, "s": model.num_angular,
        "h": model.num_heads,
        "m": experts.message_hidden if experts else 0.0, "f": experts.feature_hidden if experts else 0.0,
        "M": experts.num_shared_experts * experts.message_hidden if experts else 0.0,
        "F": experts.num_shared_experts * experts.feature_hidden if experts else 0.0,
    }  # fmt: skip
