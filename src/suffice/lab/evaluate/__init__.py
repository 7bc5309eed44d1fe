"""suffice eval: scores policies on an outcomes table."""
