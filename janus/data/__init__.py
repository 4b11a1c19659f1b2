"""Structures: reading, checking, packing, graphs and their statistics. Never imports torch."""
