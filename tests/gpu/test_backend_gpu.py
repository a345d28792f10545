"""The numeric kernels give CuPy's arrays the values they give NumPy's."""

import numpy as np
import pyarrow as pa
import pytest

from headwater.ops.backend import (
    bucket_index,
    from_arrays,
    one_hot,
    rescale,
    standardize,
    to_arrays,
    use_backend,
)

pytestmark = pytest.mark.gpu
pytest.importorskip("cupy")

COLUMN = pa.array([0.5, None, -2.0, 7.25, 1.0])


@pytest.mark.parametrize(
    "kernel",
    [
        lambda v, xp: standardize(v, 0.5, 2.0),
        lambda v, xp: rescale(v, -2.0, 0.1, 1.0),
        lambda v, xp: bucket_index(v, xp.asarray([0.0, 1.0]), xp),
        lambda v, xp: one_hot(v.astype(xp.int64), 8, xp.float32, xp),
    ],
)
def test_kernels_agree(kernel):
    values, mask = to_arrays(COLUMN)
    expected = from_arrays(kernel(values, np), mask)
    with use_backend("cupy") as xp:
        device_values, device_mask = to_arrays(COLUMN, xp)
        result = from_arrays(kernel(device_values, xp), device_mask)
    assert result.type == expected.type
    np.testing.assert_allclose(result.drop_null().flatten(), expected.drop_null().flatten(), rtol=1e-12)
