"""The sections of a report, one file each: a function of a campaign that gives a section, or None if it has nothing."""
