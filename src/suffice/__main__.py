"""python -m suffice"""

from __future__ import annotations

import sys

from .cli import main  # noqa: F401

sys.exit(main())
