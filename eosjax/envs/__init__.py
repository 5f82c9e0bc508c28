"""Environments in which a policy and its EOS head act: simulated tables, rollouts with several switchers, and collecting demonstrations."""
