"""The command `python -m suffice`."""

from __future__ import annotations

from suffice.cli import entry

if __name__ == "__main__":
    entry()
