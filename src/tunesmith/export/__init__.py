"""A trained adapter on disk, and what goes beside it."""
