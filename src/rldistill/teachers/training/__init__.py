"""Training of teachers with Stable-Baselines3."""
