"""Using a trained policy: from an observation to actions, and where to cut them."""
