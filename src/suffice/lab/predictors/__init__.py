"""Predictors of quality from features, fitted on labelled outcomes."""
