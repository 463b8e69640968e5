"""Train, measure and serve cartridges: small KV caches that stand for large corpora.

Names are loaded on first use, so that importing the package stays cheap and does not import torch.
"""

from importlib import import_module

__version__ = "0.1.0"

EXPORTS = {
    "Cartridge": "cartridges.cartridge",
    "CartridgesError": "cartridges.errors",
    "Config": "cartridges.config",
    "Corpus": "cartridges.corpus",
    "Dataset": "cartridges.dataset",
    "Engine": "cartridges.engine.engine",
    "Item": "cartridges.questions",
    "WARD": "cartridges.pocket",
    "ThoughtAdapter": "cartridges.adapter",
    "build": "cartridges.building",
    "evaluate": "cartridges.evaluation",
    "heldout_items": "cartridges.building",
    "initialize": "cartridges.initialization",
    "load_model": "cartridges.model",
    "synthesize": "cartridges.synthesis",
    "train": "cartridges.training",
    "transmute": "cartridges.transmutation",
}


def __getattr__(name: str) -> object:
    if name not in EXPORTS:
        raise AttributeError(
            f"module 'cartridges' has no attribute {name!r}; public names: {', '.join(sorted(EXPORTS))}"
        )
    return getattr(import_module(EXPORTS[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *EXPORTS]
