"""Rows to conversations to tokens to packs. Sees tokenizers, never a model."""
