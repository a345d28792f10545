"""What stands for CuPy offers what CuPy has, under the same names and parameters, and refuses what CuPy refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from headwater.ops.device.arrays.key_words import one_form
from headwater.ops.device.modules import generated, launch

from .conftest import EMULATION, real_cupy

#: a kernel of each kind of parameter
CODE = """
typedef long long Count;
extern "C" __global__ void fill(T *values, const unsigned char *keep, float by, Count rows) {
    Count i = (Count)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < rows && (!keep || keep[i])) values[i] = (T)(by * 2);
}
""".replace("T", "double")


@pytest.fixture
def emulated(xp):
    if real_cupy() is not None:
        pytest.skip("this machine has a device: nothing stands for it")
    return xp


def test_it_offers_what_cupy_has():
    done = subprocess.run(
        [sys.executable, EMULATION / "compare_api.py"], capture_output=True, text=True, timeout=120
    )
    if done.returncode == 2:
        pytest.skip("CuPy isn't installed here; `make check-cuda` does this in an environment of its own")
    assert done.returncode == 0, done.stdout + done.stderr


def test_names_that_cupy_lacks_are_refused(emulated):
    with pytest.raises(AttributeError):
        emulated.lexsort2  # noqa: B018
    with pytest.raises(AttributeError):
        emulated.float128  # noqa: B018
    with pytest.raises(AttributeError):
        emulated.zeros(2).byteswap()


def test_parameters_that_cupy_lacks_are_refused(emulated):
    array = emulated.arange(4.0)
    for call in (
        lambda: emulated.add(array, array, where=array > 1),
        lambda: emulated.add.at(array, 0, 1.0),
        lambda: array.max(initial=0),
        lambda: emulated.sum(array, where=array > 1),
        lambda: array + np.ones(4),
        lambda: array + np.array(1.0),
        lambda: np.add.reduce(array),
    ):
        with pytest.raises((TypeError, AttributeError)):
            call()
    assert float((array + np.float64(1)).sum()) == 10.0


def test_tiny_floats_are_zero_in_cupys_arithmetic_and_not_in_kernels(emulated):
    tiny = np.array([1e-40, -1e-40, 0.0, -0.0, np.nan], np.float32)
    there = emulated.asarray(tiny)
    assert not (there * np.float32(1)).get()[:4].any()
    assert (there == 0).get().tolist() == [True, True, True, True, False]
    assert one_form(there, emulated).get().tobytes() == one_form(tiny, np).tobytes()


def test_new_memory_is_not_zeros(emulated):
    assert emulated.empty(3, np.int64).get().all()
    assert np.isnan(emulated.empty_like(emulated.zeros(2)).get()).all()


@pytest.mark.parametrize(
    ("place", "wrong"),
    [
        (0, lambda xp, made: made.astype(np.float32)),  # elements of another size
        (0, lambda xp, made: xp.zeros((8, 2))[:, 0]),  # gaps
        (0, lambda xp, made: np.zeros(8)),  # on the host
        (0, lambda xp, made: np.float64(1)),  # no array
        (2, lambda xp, made: 2.0),  # no NumPy scalar
        (2, lambda xp, made: np.float64(2)),
        (2, lambda xp, made: made[0]),  # an array without axes is a pointer
        (3, lambda xp, made: np.int32(8)),
        (3, lambda xp, made: np.uint64(8)),
    ],
)
def test_wrong_arguments_of_kernels_are_refused(emulated, place, wrong):
    made = emulated.zeros(8)
    function = generated(emulated, CODE, "fill")
    args = [made, emulated.ones(8, dtype=bool), np.float32(1.5), np.int64(8)]
    launch(function, 8, args)
    assert made.get().tolist() == [3.0] * 8
    args[place] = wrong(emulated, made)
    with pytest.raises(TypeError):
        launch(function, 8, args)
    with pytest.raises(TypeError):
        launch(function, 8, args[:-1])


@pytest.mark.parametrize(
    ("grid", "block"), [((0,), (32,)), ((1, 65536), (32,)), ((1,), (2048,)), ((1,), (32, 33)), ([1], (32,))]
)
def test_impossible_launches_are_refused(emulated, grid, block):
    function = generated(emulated, CODE, "fill")
    args = (emulated.zeros(8), emulated.ones(8, dtype=bool), np.float32(1), np.int64(8))
    with pytest.raises((TypeError, ValueError)):
        function(grid, block, args)


def test_what_is_compiled_is_kept_and_rubbish_is_not_believed(emulated, tmp_path, monkeypatch):
    monkeypatch.setattr(emulated.cuda.compiler, "get_cache_dir", staticmethod(lambda: str(tmp_path / "kept")))
    compiled = []
    compile_using_nvrtc = emulated.cuda.compiler.compile_using_nvrtc

    def compile(code, options, **others):
        compiled.append(options)
        return compile_using_nvrtc(code, options, **others)

    monkeypatch.setattr(emulated.cuda.compiler, "compile_using_nvrtc", staticmethod(compile))
    from headwater.ops.device.compilation import load

    for _ in range(2):
        load(emulated, CODE, ("-DA",)).get_function("fill")
    assert compiled == [("-DA",)]
    (kept,) = Path(tmp_path / "kept").iterdir()
    kept.write_bytes(kept.read_bytes()[:-1])
    load(emulated, CODE, ("-DA",))
    assert len(compiled) == 2


def test_workers_are_forked_from_a_process_that_has_not_touched_cuda():
    found = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, headwater.runtime.workers.preload\n"
            "loaded = [name for name in ('cupy', 'torch', 'pynvml', 'numba') if name in sys.modules]\n"
            "mapped = [line for line in open('/proc/self/maps') if 'libcuda' in line or 'libnvidia' in line]\n"
            "print(loaded, mapped)",
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.stdout.strip() == "[] []", found.stdout + found.stderr


def test_blocks_are_as_the_kernel_says(emulated):
    code = CODE.replace("void fill", "void __launch_bounds__(SIZE, 2) fill").replace(
        "Count;", "Count;\n#define SIZE 64", 1
    )
    function = generated(emulated, code, "fill")
    args = (emulated.zeros(8), emulated.ones(8, dtype=bool), np.float32(1), np.int64(8))
    function((1,), (64,), args)
    with pytest.raises(ValueError, match="64 threads"):
        function((1,), (65,), args)
