"""Scaling studies: declarations, cells, attempts, executors, records, statistics. It does not draw."""
