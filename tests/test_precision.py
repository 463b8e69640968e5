from contextlib import contextmanager

import pytest
import torch

from cartridges import precision
from cartridges.errors import ConfigError
from cartridges.precision import autocast_bf16, check_resumed, has_fast_bf16, precision_of


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
    assert has_fast_bf16("cpu") is True


def test_the_very_device_is_asked(monkeypatch):
    """Torch tells of the current one."""
    current = [torch.device("cuda:0")]

    @contextmanager
    def device(wanted):
        current.append(wanted)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: current[-1] == torch.device("cuda:1")
    )
    assert has_fast_bf16("cuda:1") is True
    assert has_fast_bf16("cuda:0") is False


def test_other_devices_are_not_trusted_with_it():
    assert has_fast_bf16("meta") is False


@pytest.mark.parametrize("wanted", [True, False])
def test_products_are_in_bfloat16_if_that_is_wanted(wanted):
    a = torch.ones(2, 2)
    with autocast_bf16("cpu", wanted):
        assert (a @ a).dtype == (torch.bfloat16 if wanted else torch.float32)


def test_the_answer_is_a_plain_truth_value():
    assert type(has_fast_bf16(torch.device("cpu"))) is bool


@pytest.mark.parametrize("is_fast", [True, False])
def test_what_is_asked_for_becomes_what_is_done(monkeypatch, is_fast):
    monkeypatch.setattr(precision, "has_fast_bf16", lambda device: is_fast)
    assert precision_of("auto", torch.float32, "cpu") == ("bf16" if is_fast else "fp32")
    assert [precision_of(asked, torch.float32, "cpu") for asked in ("bf16", "fp32")] == ["bf16", "fp32"]
    narrow = [precision_of("auto", torch.float32, device, 256) for device in ("cpu", "cuda")]
    assert narrow == ["fp32", "bf16" if is_fast else "fp32"]
    assert precision_of("bf16", torch.float32, "cpu", 256) == "bf16", "as asked"
    own = [precision_of("auto", dtype, "cpu") for dtype in (torch.bfloat16, torch.float16, torch.float64)]
    assert own == ["bf16", "fp16", "float64"]


def test_a_run_in_bfloat16_goes_on_where_there_is_that(tmp_path):
    assert [check_resumed(tmp_path, name, "cpu") for name in ("bf16", "fp32")] == ["bf16", "fp32"]
    with pytest.raises(ConfigError, match="holds a run in bf16, which the device meta has not; go on with it on anoth"):
        check_resumed(tmp_path, "bf16", "meta")
