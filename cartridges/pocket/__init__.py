"""Pocket: a small world of documents with known facts, and a small language model that reads them.

`WEIGHTS` is the folder of the bundled model. Importing this package imports no torch.
"""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
MANIFEST = "manifest.json"
