"""The potentials, written as single-device mathematics."""
