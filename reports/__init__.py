"""Figures, tables and pages made from records. It measures nothing and never imports torch."""
