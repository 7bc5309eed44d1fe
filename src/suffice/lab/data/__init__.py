"""Tables of queries and outcomes: reading, checking, splitting."""
