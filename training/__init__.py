"""The trainer: data, sigmas, rollout, losses, loop and state. Knows no host and no node."""
