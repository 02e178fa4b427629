"""A model reference to a quantised model, a safe tokenizer and an adapter."""
