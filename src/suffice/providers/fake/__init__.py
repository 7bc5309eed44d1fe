"""A scripted fake upstream: drives our tests and demo, and our users' tests.

In a test:   with FakeUpstream({"models": {"m": {"reply": "Hi."}}}) as fake: ...
In a shell:  python -m suffice.providers.fake --script script.json --port 9009
"""

from __future__ import annotations

from suffice.providers.fake.connection import ReceivedRequest
from suffice.providers.fake.script import Action, FakeModel, Script, is_sufficient, load_script
from suffice.providers.fake.server import FakeUpstream

__all__ = [
    "Action",
    "FakeModel",
    "FakeUpstream",
    "ReceivedRequest",
    "Script",
    "is_sufficient",
    "load_script",
]
