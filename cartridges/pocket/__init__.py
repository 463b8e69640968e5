"""Pocket: a small world of documents with known facts, and a small language model that reads them.

`WEIGHTS` is the folder of the bundled model, `WARD` one of documents of its test split with questions. Importing this
package imports no torch.
"""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
WARD = Path(__file__).parent / "ward"
MANIFEST = "manifest.json"
