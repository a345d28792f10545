"""PyTorch's tensors and global state: arrays shared both ways, one thread, seeds, and losses of rows."""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import ModuleType
from typing import Any

import numpy as np

from ...errors import HeadwaterError, ParameterError, TypeMismatchError, UserFunctionError
from ..backend import Array, array_namespace
from ..user_functions import own_traceback

#: PyTorch's random numbers and thread count are one for the process
_LOCK = threading.RLock()
_ALIGNMENT = 64


def import_torch() -> ModuleType:
    """Return PyTorch, or raise that it isn't installed."""
    try:
        import torch
    except ImportError as error:
        raise ParameterError(
            "hw.objectives.Torch needs PyTorch, which isn't installed here. "
            "Install torch (pip install torch) on all workers, or use hw.objectives.MLP."
        ) from error
    return torch


@contextmanager
def in_torch(seed: int | None = None) -> Iterator[ModuleType]:
    """Use PyTorch with one thread, and, in this block alone, a seed; others of the process wait.

    Args:
        seed: of its random numbers; None leaves them alone.
    """
    torch = import_torch()
    with _LOCK:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with _repeatable(torch) if _on_cuda(torch) else nullcontext():
                if seed is None:
                    yield torch
                else:
                    with _seeded(torch, seed):
                        yield torch
        finally:
            torch.set_num_threads(threads)


def _on_cuda(torch: Any) -> bool:
    """Whether tensors lie on a device in this thread."""
    return array_namespace() is not np and bool(torch.cuda.is_available())


@contextmanager
def _repeatable(torch: Any) -> Iterator[None]:
    """Take kernels on the device that give the same bits each time, in this block; PyTorch warns where it has none.

    A module that has such an operation is found by the check before the first step.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it, before its first use
    cudnn = torch.backends.cudnn
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        cudnn.deterministic,
        cudnn.benchmark,
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.deterministic, cudnn.benchmark = before[2:]


@contextmanager
def _seeded(torch: Any, seed: int) -> Iterator[None]:
    """Draw from a seed in this block, on the host and on the device in use."""
    generators = [torch.default_generator]
    if _on_cuda(torch):
        generators.append(torch.cuda.default_generators[torch.cuda.current_device()])
    before = [generator.get_state() for generator in generators]
    try:
        for (
            generator
        ) in generators:  # torch.manual_seed does it for every device there may be, and takes its time
            generator.manual_seed(seed)
        yield
    finally:
        for generator, state in zip(generators, before):
            generator.set_state(state)


def to_tensor(torch: Any, array: Array) -> Any:
    """See an array as a tensor: the same memory, on the host or the device.

    Where the array is on a device and PyTorch was built without CUDA, the tensor is a copy on the host.

    On the host, what is read-only is copied, and what doesn't begin at a multiple of 64 bytes, as PyTorch's own
    tensors do: MKL's products of the same numbers differ in the last bits with where these lie in memory.
    """
    if not isinstance(array, np.ndarray):
        if torch.cuda.is_available():
            # DLPack orders the streams of both; booleans cross as bytes, which every version takes
            if array.dtype == np.bool_:
                return torch.from_dlpack(array.view(np.uint8)).to(torch.bool)
            return torch.from_dlpack(array)
        array = array.get()
    fit = array.flags.writeable and all(stride >= 0 for stride in array.strides)
    tensor = torch.from_numpy(array if fit else array.copy())
    return tensor.clone() if tensor.data_ptr() % _ALIGNMENT else tensor


def to_array(tensor: Any) -> Array:
    """See a tensor as an array of the namespace in use; a copy if PyTorch has no CUDA and that is on a device."""
    tensor = tensor.detach()
    tensor = tensor.to_dense() if tensor.is_sparse else tensor
    xp = array_namespace()
    if xp is np:
        return tensor.numpy()
    return xp.from_dlpack(tensor.contiguous()) if tensor.is_cuda else xp.asarray(tensor.numpy())


def build_module(build: Callable[[], Any], label: str, seed: int) -> Any:
    """Make a module after a seed was set, and check that it can be trained.

    Raises:
        UserFunctionError: ``build`` raised, or made no module.
        ParameterError: the module has parameters that aren't known yet or aren't of floats, or keeps what can't be
            averaged.
    """
    with in_torch(seed) as torch:
        try:
            module = build()
        except HeadwaterError:
            raise
        except Exception as error:
            raise UserFunctionError(
                f"{label}: build raised {type(error).__name__}: {error}\n{own_traceback(error)}"
            ) from error
    if not isinstance(module, torch.nn.Module):
        raise UserFunctionError(f"{label}: build returned a {type(module).__name__}, not a torch.nn.Module.")
    for name, parameter in module.named_parameters():
        if isinstance(parameter, torch.nn.parameter.UninitializedParameter):
            raise ParameterError(
                f"{label}: the parameter {name!r} has no shape yet. Give the sizes instead of a lazy module."
            )
        if not parameter.is_floating_point():
            raise ParameterError(
                f"{label}: the parameter {name!r} is {parameter.dtype}, and must be a float."
            )
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise ParameterError(f"{label}: the module has no parameters to train.")
    for name, inner in module.named_modules():
        if getattr(inner, "track_running_stats", False) and inner.momentum is None:
            raise ParameterError(
                f"{label}: {name or 'the module'} ({type(inner).__name__}) has momentum=None, a mean over all batches "
                "since the start, which can't be averaged over shards. Give it a momentum, as 0.1, or use LayerNorm "
                "or GroupNorm."
            )
    return module


def mean_loss(
    torch: Any, label: str, loss: Callable[..., Any] | None, task: str, output: Any, target: Any, weight: Any
) -> Any:
    """Return the mean loss as a tensor without dimensions, weighted if there are weights.

    Args:
        torch: PyTorch.
        label: the objective, for errors.
        loss: the user's, or None for that of the task.
        task: "regression", "binary" or "classes".
        output, target: tensors.
        weight: shape (rows,), or None.
    """
    functional = torch.nn.functional
    if loss is None:
        loss = {
            "regression": functional.mse_loss,
            "binary": functional.binary_cross_entropy_with_logits,
            "classes": functional.cross_entropy,
        }[task]
    if weight is not None and _takes_reduction(loss):
        value = loss(output, target, reduction="none")
    else:
        value = loss(output, target)
    if not isinstance(value, torch.Tensor):
        raise TypeMismatchError(f"{label}: the loss returned a {type(value).__name__}, not a tensor.")
    if value.ndim and tuple(value.shape) == (len(target),):
        return value.mean() if weight is None else (value * weight).sum() / weight.sum()
    if weight is not None:
        raise ParameterError(
            f"{label}: rows have weights, and the loss returned shape {tuple(value.shape)}, not one value for each "
            "row. Give a loss with reduction='none', as torch.nn.CrossEntropyLoss(reduction='none')."
        )
    return value


def _takes_reduction(loss: Callable[..., Any]) -> bool:
    try:
        return "reduction" in inspect.signature(loss).parameters
    except (TypeError, ValueError):
        return False
