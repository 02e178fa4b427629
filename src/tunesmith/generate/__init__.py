"""Token ids to token ids, conversations on top of that, and scores. Never sees training."""
