"""suffice train: fits a policy on labelled outcomes."""
