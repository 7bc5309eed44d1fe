"""Feedback: validation, implicit feedback, JSON Schema checks of replies."""
