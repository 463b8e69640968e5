"""Serving: cartridges by name behind an OpenAI-compatible interface, on the engine here or on stock vLLM."""
