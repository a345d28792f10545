"""Torch: any PyTorch module as an objective. PyTorch itself is imported where it is used only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from ...errors import ParameterError, TypeMismatchError, did_you_mean
from ..backend import Array, array_namespace, to_host
from ..expressions.types import parse_type
from ..training.program import Batch, DataInfo, Tree
from ..user_functions import check_picklable
from .losses import whole_classes
from .objective import Objective
from .tasks import TASKS, Task, make_task
from .torch_tensors import build_module, in_torch, mean_loss, to_array, to_tensor

if TYPE_CHECKING:
    import torch

#: dtypes of mixed precision
_AUTOCAST = ("bfloat16", "float16")


class _Roles(NamedTuple):
    """Names of a module's tensors: what is trained, what isn't, buffers that are averaged, and that count."""

    trained: frozenset[str]
    constants: tuple[str, ...]
    buffers: tuple[str, ...]
    counters: tuple[str, ...]


class Torch(Objective):
    """A PyTorch module, trained by Headwater's optimizers; its parameters lie in the state, not in the module.

    The module gets "x", of shape (rows, features), float32 (or ``dtype``), or int64 if all features are integers; or,
    with ``columns``, these columns in order. It reshapes them itself. It computes with one thread, so that the
    bits don't depend on how many there are; dropout is seeded by seed, shard and step. First parameters are drawn on
    the host; on a GPU, dropout is drawn by the device's own generator, which gives other masks than the host's, the
    same ones each time.

    Parameters with ``requires_grad=False`` keep their values. Buffers that change (running means of
    batch normalization) are averaged over shards by rows; batch normalization sees a shard's part of a batch.

    Args:
        build: makes the module, as ``lambda: nn.Sequential(nn.Linear(14, 1))``; called after a seed is set. Its code,
            and what it refers to, decide the model's lineage key.
        loss: ``loss(output, target)`` returns the mean over rows, or each row's loss, as
            ``nn.functional.cross_entropy``. None goes by ``output``: mse_loss,
            binary_cross_entropy_with_logits or cross_entropy. For weighted rows it must give each row's loss, or
            take ``reduction="none"``.
        output: what the module's output is: "regression" (a number), "binary" (a logit), "classes" (K logits); or
            names and Arrow types of the columns that it predicts, as ``{"embedding": pa.list_(pa.float32(), 16)}``:
            then the module returns one tensor, or a dict of tensors by these names.
        classes: K, for "classes".
        columns: which columns the module takes; None stacks the features into "x".
        name: in plans and errors.
        autocast: "bfloat16" or "float16": the dtype that the module computes in where PyTorch holds it to be safe
            (mixed precision). Parameters, gradients and their sums keep the training's dtype, and the loss is
            computed in float32. There is no loss scaling, so float16 gradients may vanish; prefer "bfloat16".

    Raises:
        ParameterError: ``build`` isn't a function, or ``output`` or ``autocast`` isn't one of these.
        SerializationError: ``build`` or ``loss`` can't be sent to the workers.

    Example:
        >>> def build():
        ...     from torch import nn
        ...     return nn.Sequential(nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10))
        >>> Torch(build, output="classes", classes=10).label
        'Torch(build)'
    """

    trusted = True

    def __init__(
        self,
        build: Callable[[], Any],
        loss: Callable[..., Any] | None = None,
        output: str | Mapping[str, Any] = "regression",
        classes: int | None = None,
        columns: Sequence[str] | None = None,
        name: str | None = None,
        autocast: str | None = None,
    ):
        if autocast not in (None, *_AUTOCAST):
            raise ParameterError(
                f"Torch(autocast={autocast!r}): {did_you_mean(str(autocast), _AUTOCAST)} None is full precision."
            )
        if not callable(build) or hasattr(build, "state_dict"):
            raise ParameterError(
                f"Torch(build={type(build).__name__}): give a function that makes the module, as lambda: MyModule(), "
                "so that every worker makes its own, and from the training's seed."
            )
        if loss is not None and not callable(loss):
            raise ParameterError(
                f"Torch(loss={loss!r}): give a function of output and target, as torch.nn.functional.mse_loss."
            )
        self._task: Task | None = None
        if isinstance(output, str):
            self._task = make_task("Torch", output, classes, TASKS)
        elif loss is None or not isinstance(output, Mapping) or not output:
            raise ParameterError(
                f"Torch(output={output!r}, loss={loss!r}): output is 'regression', 'binary' or 'classes', or, with a "
                "loss, the columns that are predicted, as {'embedding': pa.list_(pa.float32(), 16)}."
            )
        for function in (build, loss):
            if function is not None:
                check_picklable(function)
        self.build, self.loss_function, self.classes = build, loss, classes
        self.outputs: Any = output
        if not isinstance(output, str):
            self.outputs = {key: parse_type(type) for key, type in output.items()}
        self.columns = None if columns is None else tuple(columns)
        self.name = name
        self.autocast = autocast
        self._module: torch.nn.Module | None = None
        self._known: _Roles | None = None

    # -- the Objective -------------------------------------------------------------------------------

    def check(self, info: DataInfo) -> None:
        self.module()
        if "y" not in info.columns:
            raise ParameterError(f"{self.label} learns from a target. Give target='column'.")
        if self._task is not None:
            self._task.check(self.label, info)

    def warm_up(self) -> None:
        self.module()

    def init(self, rng: np.random.Generator, info: DataInfo) -> Tree:
        module = build_module(self.build, self.label, int(rng.integers(2**62)))
        self._check_constants(module)
        xp = array_namespace()
        found = {**dict(module.named_parameters()), **_float_buffers(module)}
        return {
            name: xp.asarray(tensor.detach().numpy().astype(info.dtype)) for name, tensor in found.items()
        }

    def value_and_grad(
        self, params: Tree, batch: Batch, rng: np.random.Generator
    ) -> tuple[float, Tree, dict[str, float]]:
        """Run the module forward and backward."""
        with self._ready(rng) as (torch, module):
            module.train()
            tensors = {name: to_tensor(torch, array) for name, array in params.items()}
            before = {name: tensors[name] for name in self.buffers}
            tensors |= {name: tensor.clone() for name, tensor in before.items()}
            trained = {
                name: tensors[name].requires_grad_() for name in params if name in self._roles().trained
            }
            output = self._forward(torch, module, tensors, batch)
            loss = self._mean_loss(torch, output, batch)
            if loss.ndim or not loss.is_floating_point():
                raise TypeMismatchError(
                    f"{self.label}: the loss is {loss.dtype} of shape {tuple(loss.shape)}; it must be one float, or "
                    "one for each row."
                )
            found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
            grads: dict[str, Any] = {}
            for (name, tensor), grad in zip(trained.items(), found):
                grads[name] = to_array(torch.zeros_like(tensor) if grad is None else grad)
            for name in self.buffers:
                grads[name] = to_array(tensors[name] - before[name])
            xp = array_namespace()
            for name in self.constants:
                grads[name] = xp.zeros_like(params[name])
            return float(loss.detach()), grads, {}

    def loss(self, params: Tree, batch: Batch, rng: Any = None) -> tuple[float, dict[str, float]]:
        """Return the mean loss with the module in evaluation mode."""
        with self._ready() as (torch, module), torch.no_grad():
            module.eval()
            tensors = {name: to_tensor(torch, array) for name, array in params.items()}
            output = self._forward(torch, module, tensors, batch)
            return float(self._mean_loss(torch, output, batch)), {}

    def predict(self, params: Tree, batch: Batch) -> dict[str, Array]:
        with self._ready() as (torch, module), torch.no_grad():
            module.eval()
            tensors = {name: to_tensor(torch, array) for name, array in params.items()}
            output = self._forward(torch, module, tensors, batch)
            if self._task is not None:
                return self._task.columns(to_array(output))
            if isinstance(output, Mapping):
                return {name: to_array(output[name]) for name in self.outputs}
            return {name: to_array(output) for name in self.outputs}

    def output(self, info: DataInfo | None = None) -> list[pa.Field]:
        if self._task is not None:
            return self._task.fields()
        return [pa.field(name, type) for name, type in self.outputs.items()]

    @property
    def buffers(self) -> tuple[str, ...]:  # type: ignore[override]
        """Buffers of floats; what they change by is averaged over shards."""
        return self._roles().buffers

    @property
    def constants(self) -> tuple[str, ...]:  # type: ignore[override]
        """Parameters with ``requires_grad=False``."""
        return self._roles().constants

    def parameters(self) -> Any:
        return (
            "Torch",
            self.build,
            self.loss_function,
            self.outputs,
            self.classes,
            self.columns,
            self.autocast,
        )

    def functions(self) -> tuple[Callable[..., Any], ...]:
        return (self.build,) if self.loss_function is None else (self.build, self.loss_function)

    @property
    def label(self) -> str:
        return self.name or f"Torch({getattr(self.build, '__name__', type(self.build).__name__)})"

    # -- the module ------------------------------------------------------------------------------------

    def module(self) -> torch.nn.Module:
        """Return the module, made once a process; its own parameters aren't the fitted ones."""
        if self._module is None:
            self._module = build_module(self.build, self.label, 0)
        return self._module

    def fitted(self, params: Tree) -> torch.nn.Module:
        """Return a new module with fitted parameters, in evaluation mode, for use without Headwater.

        Args:
            params: as a trained model has them.
        """
        import torch

        module = build_module(self.build, self.label, 0)
        known = {name: torch.from_numpy(np.array(to_host(array))) for name, array in params.items()}
        module.load_state_dict(known, strict=False)
        return module.eval()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_module": None, "_known": None}

    @contextmanager
    def _ready(self, rng: np.random.Generator | None = None) -> Iterator[tuple[Any, torch.nn.Module]]:
        with in_torch(None if rng is None else int(rng.integers(2**62))) as torch:
            yield torch, self.module()

    def _precision(self, torch: Any, like: torch.Tensor) -> AbstractContextManager[Any]:
        """Mixed precision, if it was asked for."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(like.device.type, getattr(torch, self.autocast))

    def _forward(
        self, torch: Any, module: torch.nn.Module, tensors: dict[str, torch.Tensor], batch: Batch
    ) -> Any:
        floats = next(iter(tensors.values())).dtype if tensors else torch.float32
        arguments = []
        for name in self.columns or ("x",):
            tensor = to_tensor(torch, batch[name])
            arguments.append(tensor.to(floats if tensor.is_floating_point() else torch.int64))
        where = arguments[0].device
        others = {name: module.get_buffer(name).to(where, copy=True) for name in self._roles().counters}
        with self._precision(torch, arguments[0]):
            output = torch.func.functional_call(module, {**tensors, **others}, tuple(arguments))
        if self.autocast is not None:
            output = _widened(output)
        if self._task is not None and self._task.width is None and output.ndim == 2 and output.shape[1] == 1:
            return output[:, 0]
        if self._task is not None:
            expected = (len(arguments[0]), *([self.classes] if self._task.width else []))
            if tuple(output.shape) != expected:
                raise TypeMismatchError(
                    f"{self.label}: the module returned a tensor of shape {tuple(output.shape)}, where "
                    f"output={self._task.name!r} takes {expected}."
                )
        return output

    def _mean_loss(self, torch: Any, output: Any, batch: Batch) -> torch.Tensor:
        task = "" if self._task is None else self._task.name
        target = to_tensor(torch, whole_classes(batch["y"]) if task == "classes" else batch["y"])
        floats = output.dtype if hasattr(output, "dtype") else torch.float32
        if task in ("regression", "binary") or (target.is_floating_point() and task != "classes"):
            target = target.to(floats)
        elif target.dtype != torch.bool or task == "classes":
            target = target.to(torch.int64)
        weight = batch.get("weight")
        tensor = None if weight is None else to_tensor(torch, weight).to(floats)
        return mean_loss(torch, self.label, self.loss_function, task, output, target, tensor)

    def _roles(self) -> _Roles:
        """What each of the module's tensors is, looked up once."""
        if self._known is None:
            module = self.module()
            trained = frozenset(name for name, found in module.named_parameters() if found.requires_grad)
            constants = tuple(name for name, _ in module.named_parameters() if name not in trained)
            counters = tuple(
                name for name, buffer in module.named_buffers() if not buffer.is_floating_point()
            )
            self._known = _Roles(trained, constants, tuple(_float_buffers(module)), counters)
        return self._known

    def _check_constants(self, module: torch.nn.Module) -> None:
        """Raise if the module has something that depends on the seed and isn't part of the parameters."""
        import torch

        for other, buffer in self.module().named_buffers():
            if not buffer.is_floating_point() and not torch.equal(buffer, module.get_buffer(other)):
                raise ParameterError(
                    f"{self.label}: the buffer {other!r} ({buffer.dtype}) is different whenever the module is made, "
                    "and only floats travel with the model. Register it as a float tensor, or make it without chance."
                )


def _float_buffers(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer for name, buffer in module.named_buffers() if buffer.is_floating_point()}


def _widened(output: Any) -> Any:
    """Floats of half precision as float32."""
    if isinstance(output, Mapping):
        return {name: _widened(tensor) for name, tensor in output.items()}
    return output.float() if output.is_floating_point() and output.element_size() < 4 else output
