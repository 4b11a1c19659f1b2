"""``python -m janus`` is the ``janus`` command."""

from janus.cli.main import entry_point

if __name__ == "__main__":
    entry_point()
