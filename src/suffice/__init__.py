"""suffice routes every LLM query to the cheapest model that suffices.

>>> from suffice import Router
>>> router = Router.for_dry_run()
>>> router.route("What's the weather today?").model
'openai/gpt-6-luna'
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from suffice.client import AsyncClient, Client
    from suffice.config import Settings
    from suffice.errors import ConfigError, SufficeError
    from suffice.router import Router
    from suffice.types import Decision, Features, Feedback, Objective, Policy, Prediction

__version__ = "0.1.0"

__all__ = [
    "AsyncClient",
    "Client",
    "ConfigError",
    "Decision",
    "Features",
    "Feedback",
    "Objective",
    "Policy",
    "Prediction",
    "Router",
    "Settings",
    "SufficeError",
    "__version__",
]

_MODULES = {
    "AsyncClient": "client",
    "Client": "client",
    "ConfigError": "errors",
    "Router": "router",
    "Settings": "config",
    "SufficeError": "errors",
}


def __getattr__(name: str) -> object:  # a name is imported when it is first used
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_MODULES.get(name, 'types')}", __name__), name)


def __dir__() -> list[str]:
    return __all__
