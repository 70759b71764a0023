"""Specs, action heads, policy outputs, schedules and errors."""
