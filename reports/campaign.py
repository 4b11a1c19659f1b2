"""What a report is about: the records of a folder, arranged. It owns gathering them; sections read them, none writes.

Every section is a function of one ``Campaign`` in a file of ``reports/sections``, named for what it shows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from reports.points import StudyView, arrange
from reports.training import TrainingRun
from scaling_studies.records import MEASURED, OPEN_STATES, STUDY_PLACE, Record, RecordFolder


@dataclass(frozen=True, kw_only=True)
class Campaign:
    """folder: what was read; training: one run to show beside it; earlier: an older campaign to hold this one against.

    declared: study name -> its resolved declaration (campaign.toml), None where there is no such file.
    """

    folder: RecordFolder
    training: TrainingRun | None = None
    earlier: RecordFolder | None = None
    declared: dict[str, dict[str, object]] | None = None

    @cached_property
    def records(self) -> tuple[Record, ...]:
        """All records, study by study as they were declared or named; of others as their files are called."""
        places = {record.study: record.facts.get(STUDY_PLACE, math.inf) for record in self.folder.records}
        declared = {name: place for place, name in enumerate(self.declared or ())}
        return tuple(sorted(self.folder.records, key=lambda one: declared.get(one.study, places[one.study])))

    @property
    def measured(self) -> list[Record]:
        """Attempts that have ended, whatever their outcome."""
        return [record for record in self.records if record.source == MEASURED and record.state not in OPEN_STATES]

    @property
    def open(self) -> list[Record]:
        """Attempts that have not ended."""
        return [record for record in self.records if record.state in OPEN_STATES]

    @cached_property
    def views(self) -> tuple[StudyView, ...]:
        """Studies with their points, measured ones first."""
        return arrange(self.records)

    @property
    def measured_views(self) -> list[StudyView]:
        return [view for view in self.views if view.is_measured]

    @property
    def predicted_views(self) -> list[StudyView]:
        """Studies that were only predicted."""
        return [view for view in self.views if not view.is_measured]

    @property
    def is_predicted_only(self) -> bool:
        return not self.measured_views
