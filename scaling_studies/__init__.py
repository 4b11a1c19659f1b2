"""Scaling campaigns: studies, cells, attempts, records and statistics. It draws nothing and never imports torch."""
