"""Generators by key: the same everywhere."""

import subprocess
import sys

import pytest

from cartridges.rng import rng_of


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_a_key_gives_the_same_generator_in_every_process(hash_seed):
    program = "from cartridges.rng import rng_of; print(rng_of('a', 1, ('b', 2)).random())"
    result = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True
    )
    assert float(result.stdout) == rng_of("a", 1, ("b", 2)).random()
