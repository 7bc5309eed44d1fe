"""Trained artifacts and certificates: hashed files, never pickled."""
