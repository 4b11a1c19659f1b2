"""Janus: train interatomic potentials at scale and know beforehand how that will go.

This package owns the trainer. It does not own predictions (``perfmodel``), campaigns
(``scaling_studies``) or pictures (``reports``). Importing it never imports torch.
"""

from importlib.metadata import PackageNotFoundError, version

DISTRIBUTION = "janus-umlip"

try:
    __version__ = version(DISTRIBUTION)
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "not installed"
