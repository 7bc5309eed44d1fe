"""Providers: data rows, the transport, discovery and the scripted fake upstream."""

from __future__ import annotations

from suffice.providers.registry import PROVIDERS

__all__ = ["PROVIDERS"]
