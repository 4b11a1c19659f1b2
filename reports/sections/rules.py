"""The twelve rules of Hoefler and Belli with their verdicts, broken ones first."""

from __future__ import annotations

from reports.campaign import Campaign
from reports.document import Block, Column, Document, Section, Table, Text, Tone, Value
from reports.document_checks import RULES_SECTION
from reports.rules import BROKEN, FLAGGED, KEPT, SEVERITY, State, Verdict, verdicts
from reports.wording import listed

LEAD = (
    "The rules for reporting performance of Hoefler and Belli (SC15), each checked by code against the records and "
    "this report. Kept: nothing speaks against it. Flagged: kept only by saying so, as the evidence does. Broken: the "
    "numbers named would mislead if read in the usual way. This checks what can be checked; it is no certificate."
)
TONES: dict[State, Tone] = {KEPT: "good", FLAGGED: "assumed", BROKEN: "bad"}
COLUMNS = (
    Column(name="rule", numeric=True),
    Column(name="what it asks"),
    Column(name="verdict"),
    Column(name="evidence"),
)


def sections(campaign: Campaign, document: Document | None = None) -> tuple[Section, ...]:
    """One section. document: the other sections of the report, which are then read against the rules too."""
    found = sorted(verdicts(campaign, document), key=lambda verdict: SEVERITY.index(verdict.state))
    broken = [verdict for verdict in found if verdict.state == BROKEN]
    blocks: list[Block] = [Text(text=_summary(found), style="warning" if broken else "plain"), Text(text=LEAD)]
    blocks.append(
        Table(name="rules", columns=COLUMNS, rows=tuple(_row(verdict) for verdict in found),
              caption="The twelve rules, broken and flagged ones first.")
    )  # fmt: skip
    return (
        Section(id=RULES_SECTION, title="The twelve rules", short="Twelve rules", blocks=tuple(blocks)),
    )  # fmt: skip


def _row(verdict: Verdict) -> tuple[Value | str, ...]:
    number = Value(text=str(verdict.number), number=verdict.number)
    return (number, verdict.title, Value(text=verdict.state, tone=TONES.get(verdict.state, "")),
            " ".join(_finished(sentence) for sentence in verdict.evidence))  # fmt: skip


def _finished(sentence: str) -> str:
    return f"{sentence[:1].upper()}{sentence[1:].rstrip('.')}."


def _summary(found: list[Verdict]) -> str:
    """How many rules are in which state, the worst first and by number."""
    parts = []
    for state in SEVERITY:
        own = [verdict.number for verdict in found if verdict.state == state]
        named = f" (rule{'s' if len(own) > 1 else ''} {listed(own)})" if state in (BROKEN, FLAGGED) else ""
        parts += [f"{len(own)} {state}{named}"] if own else []
    return f"Of the twelve rules: {', '.join(parts)}."
