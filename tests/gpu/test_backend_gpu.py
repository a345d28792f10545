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
)

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
def test_kernels_agree(kernel, xp):
    values, mask = to_arrays(COLUMN)
    expected = from_arrays(kernel(values, np), mask)
    device_values, device_mask = to_arrays(COLUMN, xp)
    result = from_arrays(kernel(device_values, xp), device_mask)
    assert result.type == expected.type
    assert result.is_null().equals(expected.is_null())
    np.testing.assert_allclose(result.drop_null().to_pylist(), expected.drop_null().to_pylist(), rtol=1e-12)
