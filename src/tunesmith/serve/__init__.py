"""OpenAI-style HTTP over a run, for trying it out and for small teams. The only room that knows about requests."""
