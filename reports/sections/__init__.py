"""The sections of a report, one file each: ``sections(campaign)`` gives none, one or several of them."""
