"""Cartridges by name: names that are none, folders that hold none, several at once."""

import threading
import time

import pytest

from cartridges import compose as composing
from cartridges.engine.shelf import Shelf
from cartridges.errors import FormatError, InputError
from tests.architectures import tiny
from tests.engine.judges import make_cartridge


def test_cartridges_come_and_go_by_name(qwen, tmp_path):
    shelf, one = Shelf(qwen), make_cartridge(qwen, 4, seed=1)
    make_cartridge(qwen, 6, seed=2).save(tmp_path / "two")
    shelf.add("one", one)
    shelf.add("two", tmp_path / "two")
    assert shelf.names() == ["one", "two"] and shelf.get(["one"]) is one
    assert shelf.manifest("two").num_slots == 6 and shelf.get(["two"]).num_slots == 6
    both = shelf.get(["one", "two"])
    assert both is shelf.get(["one", "two"]) and 6 < both.num_slots <= 10
    shelf.add("one", make_cartridge(qwen, 5, seed=3))
    assert shelf.get(["one", "two"]) is not both
    shelf.remove("one")
    with pytest.raises(InputError, match="unknown cartridge 'one'; known: two"):
        shelf.get(["one"])


def test_one_composition_at_a_time_and_each_once(qwen, monkeypatch):
    shelf, under_way, most, made = Shelf(qwen), [], [], []
    for seed, name in enumerate(("one", "two", "three")):
        shelf.add(name, make_cartridge(qwen, 4, seed=seed))
    compose = composing.compose

    def slow(parts, model):
        under_way.append(parts)
        most.append(len(under_way))
        time.sleep(0.05)
        whole = compose(parts, model)
        under_way.pop()
        return whole

    monkeypatch.setattr(composing, "compose", slow)
    pairs = [["one", "two"], ["two", "three"]] * 4
    assert shelf.ready(pairs[0]) is None and shelf.ready(["one"]) is shelf.get(["one"])
    threads = [threading.Thread(target=lambda pair=pair: made.append(shelf.get(pair))) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1] and len({id(whole) for whole in made}) == 2
    assert shelf.ready(pairs[0]) is shelf.get(pairs[0])


@pytest.mark.parametrize("name", ["", "../two", "a/b", ".hidden", "a" * 129, "a\nb", "a b", "naïve"])
def test_names_are_names(qwen, name):
    with pytest.raises(InputError, match="for a cartridge, expected up to 128 letters, digits, dots, dashes"):
        Shelf(qwen).add(name, make_cartridge(qwen, 4))


def test_what_is_no_cartridge_for_this_model_is_refused(qwen, tiny_tokenizer, tmp_path):
    shelf = Shelf(qwen)
    with pytest.raises(InputError, match="no cartridge in"):
        shelf.add("one", tmp_path)
    with pytest.raises(FormatError, match="was made for tiny-llama, given tiny-qwen3"):
        shelf.add("one", make_cartridge(tiny("llama", tiny_tokenizer), 4))
    with pytest.raises(InputError, match="given no name of a cartridge, expected one or more"):
        shelf.get([])
    assert shelf.names() == []
