"""From a folder of documents to a measured cartridge, in ten lines: python examples/handbook.py [FOLDER]."""

import sys
from pathlib import Path

import cartridges as ct

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ct.WARD / "documents"
corpus = ct.Corpus.from_path(folder)
engine = ct.Engine("pocket")  # or a folder, or the name of a Hugging Face model
data = ct.synthesize(corpus, engine, num_conversations=256, out=Path("runs/example/conversations"))
handbook = ct.train(data, engine.model, corpus, slots=64, epochs=2, out=Path("runs/example/slots-64"))
print(ct.evaluate(engine, corpus, ct.heldout_items(data, handbook), {"64": handbook}))
print(engine.chat(data.conversations[0].messages[0]["content"], cartridges=[handbook]))
