"""One training run beside the studies: its loss and where its errors ended. It is not a point of any study."""

from __future__ import annotations

from reports.campaign import Campaign
from reports.document import Block, Column, Section, Table, Text


def sections(campaign: Campaign) -> tuple[Section, ...]:
    """One section where a run was named and has a loss."""
    training = campaign.training
    if training is None or not training.losses:
        return ()
    columns = (Column(name="of the run"), Column(name="value", numeric=True))
    blocks: tuple[Block, ...] = (
        Text(text="A run of its own; it is not a point of the studies."), training.picture(),
        Table(name="training-run", columns=columns, rows=training.rows(), caption="The training run."),
    )  # fmt: skip
    return (Section(id="training", title="The training run", short="Training", blocks=blocks),)
