"""Evaluation of policies and comparison of teachers."""
