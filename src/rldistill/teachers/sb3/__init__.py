"""Policies of Stable-Baselines3 and sb3-contrib, and the settings of rl-baselines3-zoo beside them."""
