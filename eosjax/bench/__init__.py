"""Ways to train the EOS head, compared on equal footing."""
