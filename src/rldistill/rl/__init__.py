"""Learning from reward by PPO and DQN, with or without a teacher."""
