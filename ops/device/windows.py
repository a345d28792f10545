"""Windows: memory of a device that other processes of the machine read while this one lives, by CUDA IPC; see `ipc`."""

from __future__ import annotations

from types import ModuleType

from .ipc import IpcRefusedError, Mapped


class Window:
    """An allocation of its own, outside of CuPy's pool, that others may map.

    Attributes:
        size: in bytes.
        address: where it is here.
        handle: by which another process maps it.
    """

    def __init__(self, size: int, xp: ModuleType):
        try:
            self._memory = xp.cuda.memory.Memory(
                size
            )  # not of the pool: CUDA itself says that there is no room
            self.size, self.address = size, int(self._memory.ptr)
            self.handle = bytes(xp.cuda.runtime.ipcGetMemHandle(self.address))
        except xp.cuda.runtime.CUDARuntimeError as error:
            raise IpcRefusedError(str(error)) from error


class Windows:
    """Makes windows, and looks through those of others.

    Args:
        xp: CuPy.
    """

    def __init__(self, xp: ModuleType):
        self._xp = xp

    def make(self, size: int) -> Window:
        """Make a window of so many bytes; it goes with its last reference.

        Raises:
            IpcRefusedError: CUDA doesn't share it.
        """
        return Window(size, self._xp)

    def map(self, handle: bytes) -> Mapped:
        """Map another process's window.

        Raises:
            IpcRefusedError: CUDA doesn't.
        """
        return Mapped([handle], self._xp)

    def copy(self, target: int, source: int, size: int) -> None:
        """Copy bytes between addresses, in the order of the current stream."""
        if size:
            runtime, stream = self._xp.cuda.runtime, self._xp.cuda.get_current_stream()
            runtime.memcpyAsync(target, source, size, runtime.memcpyDeviceToDevice, stream.ptr)

    def finish(self) -> None:
        """Wait for what was queued in this thread."""
        self._xp.cuda.get_current_stream().synchronize()
