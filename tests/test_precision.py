import pytest
import torch

from cartridges import precision
from cartridges.precision import autocast_bf16, has_fast_bf16


@pytest.mark.parametrize(
    ("told", "expected"),
    [({"amx_bf16": True}, True), ({"avx512_bf16": True}, True), ({"bf16": True}, True), ({"avx512_f": True}, False)],
)
def test_a_processor_is_asked_for_its_instructions(monkeypatch, told, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert has_fast_bf16("cpu") is expected


def test_an_older_torch_is_asked_in_its_own_words(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert has_fast_bf16("cpu")


def test_other_devices_are_not_trusted_with_it():
    assert not has_fast_bf16("meta")


@pytest.mark.parametrize("wanted", [True, False])
def test_products_are_in_bfloat16_if_that_is_wanted(wanted):
    a = torch.ones(2, 2)
    with autocast_bf16("cpu", wanted):
        assert (a @ a).dtype == (torch.bfloat16 if wanted else torch.float32)


def test_the_answer_is_a_plain_truth_value():
    assert precision.has_fast_bf16(torch.device("cpu")) in (True, False)
