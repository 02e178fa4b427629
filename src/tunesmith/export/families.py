"""Families of models that a GGUF file can hold."""

ARCHITECTURES = {
    "llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "phi3": "phi3", "gemma": "gemma",
    "gemma2": "gemma2", "gemma3_text": "gemma3", "olmo2": "olmo2", "granite": "granite",
}  # fmt: skip
"""transformers' model_type to GGUF's architecture."""

WHOLE = ("llama", "mistral", "phi3", "qwen2", "qwen3")
"""Those that are written as one model whatever form their base came in; others only if it came as GGUF."""
