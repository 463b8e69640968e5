"""Generators by key: the same everywhere."""

import subprocess
import sys

import pytest

from cartridges.rng import rng_of, spread


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_a_key_gives_the_same_generator_in_every_process(hash_seed):
    program = "from cartridges.rng import rng_of; print(rng_of('a', 1, ('b', 2)).random())"
    result = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True
    )
    assert float(result.stdout) == rng_of("a", 1, ("b", 2)).random()


@pytest.mark.parametrize("num", [10, 171, 1000])
@pytest.mark.parametrize(("first", "start"), [(0, 0.0), (7, 0.3), (10_000, 0.999)])
def test_points_are_spread_evenly_however_many_there_are(num, first, start):
    points = sorted(spread(number, start) for number in range(first, first + num))
    assert points[0] >= 0 and points[-1] < 1
    gaps = [after - before for before, after in zip(points, [*points[1:], points[0] + 1], strict=True)]
    assert max(gaps) < 2 / num  # of points drawn one by one it is about log(num) / num
