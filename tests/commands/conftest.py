"""What tests of the commands share: calling one in this process, and a place with models, documents and a cartridge.

A test file names its command as COMMAND.
"""

import pytest

from cartridges import cli
from cartridges.corpus import Corpus
from cartridges.initialization import InitializeConfig, initialize
from cartridges.model import load_model
from tests.architectures import tiny


@pytest.fixture
def call(request, capsys):
    """The command in this process; returns exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as stopped:
            cli.main([request.module.COMMAND, *map(str, arguments)])
        return stopped.value.code, *capsys.readouterr()

    return call


@pytest.fixture
def refused(call):
    """What is said, in one line, of a command that has to fail."""

    def refused(*arguments: object) -> str:
        code, _, stderr = call(*arguments)
        assert (code, stderr.count("\n")) == (2, 1), stderr
        assert stderr.startswith("error: ")
        return stderr

    return refused


class Place:
    """Two saved models of one shape, two documents, and an untrained cartridge that stands for them."""

    def __init__(self, folder, tokenizer):
        self.folder, self.docs, self.cartridge = folder, folder / "docs", folder / "build" / "cartridge"
        self.paths = {seed: folder / f"model-{seed}" for seed in (0, 1)}
        for seed, path in self.paths.items():
            tiny("llama", tokenizer, seed).hf.save_pretrained(path)
            tokenizer.save_pretrained(path)
        self.docs.mkdir()
        (self.docs / "ward.txt").write_text("The ward has nine beds and one door. " * 4)
        (self.docs / "firm.txt").write_text("The firm sells wire to seven towns. " * 4)
        self.model = load_model(self.paths[0], device="cpu")
        self.corpus = Corpus.from_path(self.docs)
        initialize(self.model, self.corpus, 30, InitializeConfig()).save(self.cartridge)


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_tokenizer):
    return Place(tmp_path_factory.mktemp("place"), tiny_tokenizer)
