"""The public names for type checkers; `__init__.py` loads them on first use."""

from cartridges.adapter import ThoughtAdapter as ThoughtAdapter
from cartridges.building import build as build
from cartridges.building import heldout_items as heldout_items
from cartridges.cartridge import Cartridge as Cartridge
from cartridges.config import Config as Config
from cartridges.corpus import Corpus as Corpus
from cartridges.dataset import Dataset as Dataset
from cartridges.engine.engine import Engine as Engine
from cartridges.errors import CartridgesError as CartridgesError
from cartridges.evaluation import evaluate as evaluate
from cartridges.initialization import initialize as initialize
from cartridges.model import load_model as load_model
from cartridges.pocket import WARD as WARD
from cartridges.questions import Item as Item
from cartridges.synthesis import synthesize as synthesize
from cartridges.training import train as train
from cartridges.transmutation import transmute as transmute

__version__: str
