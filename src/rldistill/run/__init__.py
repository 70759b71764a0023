"""Run files, and the stages of a run."""
