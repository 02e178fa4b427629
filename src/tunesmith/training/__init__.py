"""Batches and a model to step reports and an adapter. Never sees a chat template."""
