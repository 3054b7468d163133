"""What `ollmlx doctor` says about the engine of GGUF models."""

from __future__ import annotations

import platform
from importlib import metadata

import pytest

from ollmlx import doctor

AVX2 = {"SSE3", "AVX", "AVX2", "FMA", "REPACK"}


@pytest.mark.parametrize(
    ("uses", "flags", "unused"),
    [
        (AVX2, {"avx2", "fma"}, []),
        (AVX2, {"avx2", "avx512f", "avx512_vnni", "avx512_bf16"}, ["AVX512", "AVX512_VNNI", "AVX512_BF16"]),
        (AVX2, {"avx2", "avx_vnni"}, ["AVX_VNNI"]),
        (AVX2 | {"AVX512"}, {"avx512f"}, []),
        (AVX2, set(), []),
    ],
)
def test_units_of_the_cpu_that_the_library_leaves_alone(
    uses: set[str], flags: set[str], unused: list[str]
) -> None:
    assert doctor.unused_units(uses, flags) == unused


@pytest.mark.skipif(platform.machine() != "x86_64", reason="these are units of x86")
def test_the_way_to_a_faster_build_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def hints(*flags: str) -> list[str]:
        report = doctor.Report()
        monkeypatch.setattr(doctor, "_cpu_flags", lambda: set(flags))
        doctor._examine_gguf(report)
        assert "gguf_engine" in report.facts and not report.problems
        return report.hints

    assert hints("avx2") == []
    [hint] = hints("avx2", "amx_int8")
    assert "AMX_INT8" in hint and "1.5 times" in hint
    assert f"git+https://github.com/xorbitsai/xllamacpp@v{metadata.version('xllamacpp')}" in hint
