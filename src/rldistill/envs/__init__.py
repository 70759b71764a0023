"""Environments: construction, wrappers, seeds, and the loop that steps them."""
