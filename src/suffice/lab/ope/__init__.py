"""Off-policy evaluation of policies on recorded decisions."""
