"""Figures, tables and pages from records, and the honesty rules. It measures nothing and predicts nothing."""
