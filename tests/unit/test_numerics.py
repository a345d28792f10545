"""Workers that would compute other bits are told apart."""

import subprocess
import sys

from headwater.runtime.training.numerics import differences, numerics


def test_the_same_process_has_no_differences():
    assert differences(numerics(), numerics()) == ""


def test_what_differs_is_named_with_both_values():
    theirs = {**numerics(), "blas": "Haswell"}
    assert differences(numerics(), theirs) == f"blas Haswell (here {numerics()['blas']})"


def test_what_was_imported_before_makes_no_difference():
    imports = "import torch, scipy.linalg; from headwater.runtime.training.numerics import numerics"
    code = f"{imports}; print(dict(numerics()))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(dict(numerics()))
