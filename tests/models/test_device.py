from pathlib import Path

import pytest
import torch

from veilset.errors import TrainingError
from veilset.models.device import Engine, choose_engine, cpu_has_bf16, kernels

CPU = Engine(torch.device("cpu"), "fp32")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model name\t: A\nflags\t\t: fpu avx512f avx512_bf16 sse\n", True),
        ("flags\t\t: fpu amx_bf16\n", True),
        ("Features\t: fp asimd bf16\n", True),
        ("flags\t\t: fpu avx512f avx512vl avx512_vnni\n", False),
        ("model name\t: bf16 maker\nflags\t\t: fpu\n", False),
        ("", False),
    ],
)
def test_bf16_is_found_by_the_flags_of_the_cpu(tmp_path: Path, text: str, expected: bool) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert cpu_has_bf16(tmp_path / "cpuinfo") is expected


def test_no_cpuinfo_means_no_bf16(tmp_path: Path) -> None:
    assert not cpu_has_bf16(tmp_path / "absent")


@pytest.mark.parametrize(("fast", "precision"), [(True, "bf16"), (False, "fp32")])
def test_auto_takes_bf16_only_where_it_is_fast(
    monkeypatch: pytest.MonkeyPatch, fast: bool, precision: str
) -> None:
    monkeypatch.setattr("veilset.models.device.cpu_has_bf16", lambda: fast)
    assert choose_engine("cpu").precision == precision
    assert choose_engine("cpu", "fp32").precision == "fp32"


def test_what_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("veilset.models.device.cpu_has_bf16", lambda: False)
    monkeypatch.setattr("veilset.models.device.cuda_works", lambda: False)
    with pytest.raises(TrainingError, match="no CUDA device works here: use auto or cpu"):
        choose_engine("cuda")
    with pytest.raises(TrainingError, match="bf16, but this cpu lacks it"):
        choose_engine("cpu", "bf16")
    assert choose_engine("auto").device.type == "cpu"


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("asked", [True, False])
def test_kernel_settings_are_put_back(before: bool, asked: bool) -> None:
    torch.set_deterministic_debug_mode(2 if before else 0)
    cores = torch.get_num_threads()
    try:
        with pytest.raises(KeyError), kernels(CPU, deterministic=asked, threads=cores + 1):
            assert torch.get_num_threads() == cores + 1
            assert torch.are_deterministic_algorithms_enabled() is asked
            raise KeyError
        assert torch.are_deterministic_algorithms_enabled() is before
        assert torch.get_num_threads() == cores
    finally:
        torch.set_deterministic_debug_mode(0)
