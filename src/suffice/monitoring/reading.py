"""What a judge is shown of a request."""

from __future__ import annotations

from suffice.types import Message, Query

# Fields, apart from the messages, in which the client asks for the form of an answer.
_FORM = ("tools", "functions", "response_format")


def judged_messages(query: Query) -> tuple[Message, ...]:
    """The conversation as a judge gets it: its texts, then the tools and the format asked for."""
    form = [
        Message(name, bytes(query.fields[name]).decode("utf-8", "replace"))
        for name in _FORM
        if name in query.fields and bytes(query.fields[name]) != b"null"
    ]
    return (*query.messages, *form)
