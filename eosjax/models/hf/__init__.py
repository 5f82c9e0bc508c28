"""Checkpoints of the PyTorch original: one table of names (`table`), read in both directions (`weights`), from files (`files`)."""
