"""The part of ``cupy.cuda.runtime`` that Headwater uses."""


class CUDARuntimeError(RuntimeError):
    """What the driver reports."""


def getDeviceCount() -> int:
    return 1


def getDevice() -> int:
    return 0


def deviceSynchronize() -> None:
    pass


def memGetInfo() -> tuple[int, int]:
    return 1 << 40, 1 << 40


def getDeviceProperties(device: int) -> dict[str, object]:
    return {
        "name": b"emulated",
        "multiProcessorCount": 4,
        "totalGlobalMem": 1 << 40,
        "pciBusID": 0,
        "uuid": b"0" * 16,
    }
