"""DeviceFilterProject: chains of filters and projections against the host's kernels, one after another."""

from __future__ import annotations

import pickle
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pytest

from headwater.errors import HeadwaterError
from headwater.ops.backend import use_backend
from headwater.ops.device import lowerings  # noqa: F401  (registers the operators)
from headwater.ops.device.device_kernel import DeviceKernel, device_kernel
from headwater.ops.device.operators.filter_project import DeviceFilterProject, fused
from headwater.ops.device.table import to_arrow, to_device
from headwater.ops.expressions import Expr, col, lit, when
from headwater.ops.filter import FilterKernel
from headwater.ops.kernel import Context, Kernel
from headwater.ops.project import ProjectKernel

RANDOM = np.random.default_rng(8)
ROWS = 9_001


def some(values: object, nulls: float = 0.2) -> pa.Array:
    return pa.array(values, mask=RANDOM.random(ROWS) < nulls if nulls else None)


TABLE = pa.table(
    {
        "x": some(RANDOM.integers(-50, 50, ROWS)),
        "k": some(RANDOM.integers(0, 4, ROWS), 0),
        "n": some(RANDOM.integers(-128, 128, ROWS).astype(np.int8)),
        "y": some(RANDOM.choice([0.0, -0.0, np.nan, 1.5, np.inf, -3.25], ROWS)),
        "f": some(RANDOM.normal(size=ROWS).astype(np.float32), 0),
        "b": some(RANDOM.random(ROWS) < 0.5),
        "s": some(RANDOM.choice(np.array(["a", "bb", "12", "-7"], object), ROWS)),
        "c": some(RANDOM.choice(np.array(["u", "v"], object), ROWS)).dictionary_encode(),
        "d": some(RANDOM.integers(0, 20_000, ROWS).astype("datetime64[D]")),
    }
)
Step = Expr | dict[str, Expr]


def kernels(steps: Sequence[Step], schema: pa.Schema) -> list[tuple[Kernel, pa.Schema]]:
    """The host's kernels, each with the schema of what it reads."""
    made: list[tuple[Kernel, pa.Schema]] = []
    for step in steps:
        if isinstance(step, Expr):
            made.append((FilterKernel(step), schema))
        else:
            after = pa.schema([(name, expr.infer(schema)) for name, expr in step.items()])
            made.append((ProjectKernel(tuple(step.items()), after), schema))
            schema = after
    return made


def together(steps: Sequence[Step], schema: pa.Schema) -> DeviceFilterProject:
    """The device's operator for all of them."""
    whole: DeviceKernel | None = None
    for kernel, source in kernels(steps, schema):
        lowered = device_kernel(kernel, [source])
        assert isinstance(lowered, DeviceKernel), lowered
        joined = lowered if whole is None else fused(whole, lowered)
        assert isinstance(joined, DeviceKernel), joined
        whole = joined
    assert isinstance(whole, DeviceFilterProject)
    return pickle.loads(pickle.dumps(whole))


def on_host(steps: Sequence[Step], tables: list[pa.Table]) -> pa.Table:
    stream, made = iter(tables), kernels(steps, tables[0].schema)
    for kernel, _ in made:
        stream = kernel.run([stream], Context())
    last = made[-1][0]
    schema = last.schema if isinstance(last, ProjectKernel) else made[-1][1]
    return pa.concat_tables([schema.empty_table(), *stream])


def on_device(chain: DeviceFilterProject, tables: list[pa.Table], xp: ModuleType) -> pa.Table:
    with use_backend(xp.__name__):
        found = list(chain.run([iter([to_device(table, xp) for table in tables])], Context()))
    return pa.concat_tables([chain.chain.schema.empty_table(), *map(to_arrow, found)])


def same(found: pa.Table, wanted: pa.Table) -> None:
    """Equal to the bit, NaN like NaN."""
    assert found.schema == wanted.schema
    assert found.num_rows == wanted.num_rows
    for name, one, other in zip(found.column_names, found.columns, wanted.columns):
        one, other = one.combine_chunks(), other.combine_chunks()
        if pa.types.is_dictionary(one.type):
            one, other = (c.cast(pa.string()) for c in (one, other))
        assert one.is_valid().equals(other.is_valid()), name
        if pa.types.is_floating(one.type):
            bits = np.uint32 if one.type == pa.float32() else np.uint64
            one, other = (np.nan_to_num(c.drop_null().to_numpy(), nan=7e33).view(bits) for c in (one, other))
            assert np.array_equal(one, other), name
        else:
            assert one.equals(other), name


ALL = {name: col(name) for name in TABLE.column_names}
CHAINS: dict[str, list[Step]] = {
    "filter, columns as they are": [
        col("x") > 0,
        {"y": col("y"), "s": col("s"), "t": col("c"), "d": col("d")},
    ],
    "filter, computed": [
        (col("x") > -20) & col("b"),
        {"z": col("y") * col("f") + 1, "x": col("x") % col("k"), "u": col("s").str.upper(), "n": col("n")},
    ],
    "projection, filter": [{"z": col("x") * col("k"), "s": col("s")}, col("z") > 10],
    "projection that is read twice": [
        {"z": col("x") // col("k"), "y": col("y")},
        {"w": col("z") * col("z") + col("y"), "z": col("z")},
        {"w": col("w") - col("z"), "v": col("z").is_null()},
    ],
    "in any order": [
        col("k") > 0,
        {**ALL, "x": col("x") + col("n"), "k": col("k"), "t": col("s").str.len()},
        col("x") < 40,
        {"x": col("k"), "k": col("x"), "t": col("t"), "b": col("b"), "c": col("c"), "one": lit(1, "int8")},
        (col("x") < 3) | col("b"),
        {
            "x": col("x") * 2,
            "k": col("k"),
            "kind": when(col("b")).then("+").otherwise("-"),
            "one": col("one"),
        },
    ],
    "renamed strings": [
        {"t": col("s"), "s": col("s").str.upper(), "x": col("x")},
        col("t").str.len() > 1,
        {
            "a": col("t").str.upper(),
            "b": col("s").str.len(),
            "e": col("s") == col("t"),
            "none": lit(None, "string"),
        },
    ],
    "filters alone": [col("x") > -30, col("k") != 2],
    "few": [(col("x") == 3) & (col("k") == 1) & (col("f") > 1), {"x": col("x") + 1, "y": col("y")}],
    "none": [col("x") > 1000, {"x": col("x")}],
    "everything": [col("x").is_null() | (col("x") > -100), {"x": col("x") + 1, "s": col("s"), "k": col("k")}],
    "a constant": [lit(True), {"x": col("x")}, lit(False)],
}


@pytest.mark.parametrize("steps", CHAINS.values(), ids=CHAINS.keys())
def test_as_on_the_host(xp: ModuleType, steps: list[Step], monkeypatch: pytest.MonkeyPatch) -> None:
    cuts = [TABLE.slice(0, 1_024), TABLE.slice(0, 0), TABLE.slice(1_024, 1), TABLE.slice(1_025)]
    wanted, chain = on_host(steps, cuts), together(steps, TABLE.schema)
    same(on_device(chain, cuts, np), wanted)
    for step in type(chain.steps[0]), type(chain.steps[1]):
        monkeypatch.setattr(step, "alone", None)  # on a device nothing is taken one by one
    same(on_device(chain, cuts, xp), wanted)


def test_what_passes_through_all_kept_rows_is_not_copied(xp: ModuleType) -> None:
    chain = together([col("k") >= 0, {"y": col("y"), "z": col("x") + 1}], TABLE.schema)
    table = to_device(TABLE, xp)
    (found,) = chain.run([iter([table])], Context())
    assert found.columns[0] is table.column("y")


def test_rows_that_are_dropped_do_not_raise(xp: ModuleType) -> None:
    cast = {"small": col("x").cast("int8"), "word": col("s").cast("int32")}
    rows = pa.table({"x": [1, 1000, 2, None] * 500, "s": ["3", "x", "4", None] * 500})
    for steps in ([col("x") < 100, cast], [col("x") < 100, cast, col("small") > 1], [cast, col("small") > 1]):
        chain = together(steps, rows.schema)
        raises = isinstance(steps[0], dict)
        for namespace in (np, xp):
            if raises:
                with pytest.raises(HeadwaterError) as wanted:
                    on_host(steps, [rows])
                with pytest.raises(HeadwaterError) as found:
                    on_device(chain, [rows], namespace)
                assert str(found.value) == str(wanted.value)
            else:
                same(on_device(chain, [rows], namespace), on_host(steps, [rows]))


def test_what_nobody_reads_raises_as_on_the_host(xp: ModuleType) -> None:
    rows = pa.table({"x": [1, 2, 1000] * 700, "k": [0, 1, 1] * 700})
    unread = [{"small": col("x").cast("int8"), "k": col("k")}, col("k") > 0, {"k": col("k")}]
    after = [col("k") > 0, {"small": col("x").cast("int8"), "k": col("k")}, {"k": col("k")}]
    fine = [col("k") < 1, {"small": col("x").cast("int8"), "k": col("k")}, {"k": col("k")}]
    for steps in (unread, after):
        with pytest.raises(HeadwaterError):
            on_host(steps, [rows])
        with pytest.raises(HeadwaterError):
            on_device(together(steps, rows.schema), [rows], xp)
    same(on_device(together(fine, rows.schema), [rows], xp), on_host(fine, [rows]))


def test_many_columns_are_several_kernels(xp: ModuleType) -> None:
    rows = pa.table({f"c{i}": RANDOM.integers(0, 9, 2_000).astype(np.int16) for i in range(80)})
    steps = [col("c0") > 3, {**{f"c{i}": col(f"c{i}") for i in range(1, 80)}, "sum": col("c1") + col("c2")}]
    chain = together(steps, rows.schema)
    assert len(chain.chain.layout.parts) > 4
    same(on_device(chain, [rows], xp), on_host(steps, [rows]))


def test_what_can_not_be_one_kernel_stays_two_steps() -> None:
    schema = pa.schema({"s": pa.string(), "x": pa.int64()})
    (first, _), (second, source) = kernels(
        [{"t": col("s").str.upper(), "x": col("x")}, {"n": col("t").cast("int64")}], schema
    )
    upper, parsed = device_kernel(first, [schema]), device_kernel(second, [source])
    assert isinstance(upper, DeviceKernel)
    assert isinstance(parsed, DeviceKernel)
    assert "seen on the host" in str(fused(upper, parsed))


def test_it_tells_what_does_not_move() -> None:
    chain = together([(col("x") > 0) & col("b"), {"y": col("y"), "k": col("k") + col("x")}], TABLE.schema)
    assert chain.label == "Filter+Project"
    assert chain.chain.layout.unmoved == ["b"]
    assert "'b' is read by the filter alone" in chain.describe()


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_generated_sources_compile(arch: str, tmp_path: Path) -> None:
    compiler = shutil.which("nvcc")
    if compiler is None:
        pytest.skip("there is no nvcc here")
    chain = together(CHAINS["in any order"], TABLE.schema).chain
    every = frozenset(chain.source.names)
    for form in ("mask", "kept"):
        source = tmp_path / f"{form}.cu"
        source.write_text(
            chain.layout.program(form, () if form == "mask" else chain.layout.parts[0], every).code
        )
        options = [
            "-cubin",
            f"-arch={arch}",
            "-std=c++17",
            "--fmad=false",
            "-o",
            str(source.with_suffix(".cubin")),
        ]
        done = subprocess.run([compiler, *options, str(source)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[:2000]
