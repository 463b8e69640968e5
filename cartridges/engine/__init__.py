"""Inference in this process: many requests at once on an unmodified model, with or without a cartridge."""
