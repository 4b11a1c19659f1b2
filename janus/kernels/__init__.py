"""Fused operators with analytic first and second derivatives, each held to a plain reference."""
