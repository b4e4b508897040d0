"""A double of `cuda.bindings.runtime` on host memory: strict about handles, pinned memory and waiting.

What is queued on a stream happens when somebody waits for the stream, and not before: code that forgets to wait reads
memory that nobody has written. Every function exists in the installed binding, of which the enums and constants are.
"""

import ctypes
import itertools
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from cuda.bindings import runtime as binding

from tests.double.core import World

Work = Callable[[], object]
OK, INVALID, BAD_HANDLE = (
    binding.cudaError_t.cudaSuccess,
    binding.cudaError_t.cudaErrorInvalidValue,
    binding.cudaError_t.cudaErrorInvalidResourceHandle,
)
LEGACY_STREAM = 1
ALIGNMENT = 256


class CudaDouble:
    """One GPU, number 0, with a fake clock that ticks a millisecond for everything that happens on a stream.

    `memory` and `pinned` hold live allocations by address, `streams` the queues, `events` when each happened, `graphs`
    and `executables` what was captured. `code` is the error of calls in `world.failing`.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.code = binding.cudaError_t.cudaErrorUnknown
        self.memory: dict[int, Any] = {}
        self.pinned: dict[int, Any] = {}
        self.streams: dict[int, list[Work]] = {LEGACY_STREAM: []}
        self.events: dict[int, float | None] = {}
        self.graphs: dict[int, list[Work]] = {}
        self.executables: dict[int, list[Work]] = {}
        self.capturing: dict[int, list[Work]] = {}
        self.clock_ms = 0.0
        self.copies: list[str] = []
        self.gpu = SimpleNamespace(name=b"Double GPU\0\0", major=8, minor=7)
        self.driver = 12040
        self.count = 1
        self.elsewhere: set[int] = set()
        self._handles = itertools.count(100)
        self._homes: dict[int, int] = {}
        self._devices: dict[int, int] = {}
        self._thread = threading.local()
        self._lock = threading.RLock()

    @property
    def current(self) -> int:
        """Return the GPU of this thread: each starts on GPU 0."""
        return int(getattr(self._thread, "device", 0))

    @property
    def alive(self) -> dict[str, int]:
        """Return the amount of each kind of resource that has not been released."""
        kinds = ("memory", "pinned", "events", "graphs", "executables", "capturing")
        counts = {kind: len(getattr(self, kind)) for kind in kinds} | {"streams": len(self.streams) - 1}
        return {kind: count for kind, count in counts.items() if count}

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("cuda"):
            return object.__getattribute__(self, name)
        real = getattr(binding, name)  # an AttributeError here is a call that the binding does not have
        if isinstance(real, type) or not callable(real):
            return real
        double = object.__getattribute__(self, name)

        def checked(*arguments: Any) -> Any:
            if self.world.fails(name):
                if name == "cudaStreamEndCapture":  # an invalid capture ends all the same
                    self.capturing.pop(int(arguments[0]), None)
                return self.code, *[None] * (2 if name == "cudaMemGetInfo" else 1)
            with self._lock:
                return double(*arguments)

        return checked

    def queue(self, stream: Any, work: Work) -> Any:
        """Put work on a stream, or into what it is capturing."""
        handle = int(stream)
        if handle not in self.streams or self._devices.get(handle, self.current) != self.current:
            return (BAD_HANDLE,)
        (self.capturing[handle] if handle in self.capturing else self.streams[handle]).append(work)
        return (OK,)

    def happen(self, stream: int) -> None:
        """Do all that is queued on a stream."""
        with self._lock:
            while self.streams[stream]:
                self.clock_ms += 1
                self.streams[stream].pop(0)()

    def view(self, address: int, size_bytes: int) -> Any:
        """Return live memory at an address, on the GPU or pinned."""
        for start, buffer in (*self.memory.items(), *self.pinned.items()):
            if start <= address and address + size_bytes <= start + len(buffer):
                return (ctypes.c_char * size_bytes).from_address(address)
        raise AssertionError(f"{size_bytes} bytes at {address} are not allocated any more")

    def new_memory(self, kind: dict[int, Any], size_bytes: int) -> int:
        """Allocate, aligned as CUDA does, and filled with what no result looks like."""
        whole = ctypes.create_string_buffer(size_bytes + ALIGNMENT)
        start = -ctypes.addressof(whole) % ALIGNMENT
        buffer = (ctypes.c_char * size_bytes).from_buffer(whole, start)
        buffer.raw = b"\xff" * size_bytes
        kind[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    def cudaGetDeviceCount(self) -> Any:  # noqa: N802 - CUDA's own names, here and below
        return OK, self.count

    def cudaGetDevice(self) -> Any:  # noqa: N802
        return OK, self.current

    def cudaSetDevice(self, device: int) -> Any:  # noqa: N802
        self._thread.device = device
        return (OK,)

    def cudaGetDeviceProperties(self, device: int) -> Any:  # noqa: N802
        return (OK, self.gpu) if device == self.current else (INVALID, None)

    def cudaDriverGetVersion(self) -> Any:  # noqa: N802
        return OK, self.driver

    def cudaPointerGetAttributes(self, address: int) -> Any:  # noqa: N802
        return OK, SimpleNamespace(device=self.current + (address in self.elsewhere))

    def cudaMemGetInfo(self) -> Any:  # noqa: N802
        return OK, 2**30 - sum(len(buffer) for buffer in self.memory.values()), 2**30

    def cudaStreamCreateWithFlags(self, flags: int) -> Any:  # noqa: N802
        if flags != binding.cudaStreamNonBlocking:
            return INVALID, None
        handle = next(self._handles)
        self.streams[handle], self._devices[handle] = [], self.current
        return OK, handle

    def cudaStreamDestroy(self, stream: Any) -> Any:  # noqa: N802
        if int(stream) in self.capturing:
            return (binding.cudaError_t.cudaErrorStreamCaptureUnmatched,)
        return (OK,) if self.streams.pop(int(stream), None) is not None else (BAD_HANDLE,)

    def cudaStreamSynchronize(self, stream: Any) -> Any:  # noqa: N802
        if int(stream) in self.capturing:
            return (binding.cudaError_t.cudaErrorStreamCaptureUnsupported,)
        if int(stream) not in self.streams:
            return (BAD_HANDLE,)
        self.happen(int(stream))
        return (OK,)

    def cudaStreamWaitEvent(self, stream: Any, event: int, flags: int) -> Any:  # noqa: N802
        if flags != 0 or event not in self.events:
            return (INVALID,)
        home = self._homes.get(event, LEGACY_STREAM)
        return self.queue(stream, lambda: self.happen(home))

    def cudaMalloc(self, size_bytes: int) -> Any:  # noqa: N802
        return OK, self.new_memory(self.memory, size_bytes)

    def cudaFree(self, address: int) -> Any:  # noqa: N802
        if self.capturing:
            return (binding.cudaError_t.cudaErrorStreamCaptureUnsupported,)
        return (OK,) if self.memory.pop(address, None) is not None else (INVALID,)

    def cudaMallocHost(self, size_bytes: int) -> Any:  # noqa: N802
        return OK, self.new_memory(self.pinned, size_bytes)

    def cudaFreeHost(self, address: int) -> Any:  # noqa: N802
        return (OK,) if self.pinned.pop(address, None) is not None else (INVALID,)

    def cudaMemcpyAsync(self, to: int, source: int, size_bytes: int, kind: Any, stream: Any) -> Any:  # noqa: N802
        if kind == binding.cudaMemcpyKind.cudaMemcpyDeviceToDevice:
            if not {to, source} <= set(self.memory) or int(stream) in self.capturing:
                return (INVALID,)
            self.copies.append("on")
            return self.queue(stream, lambda: self._move(to, source, size_bytes))
        inwards = kind == binding.cudaMemcpyKind.cudaMemcpyHostToDevice
        host, device = (source, to) if inwards else (to, source)
        if host not in self.pinned or device not in self.memory or int(stream) in self.capturing:
            return (INVALID,)
        self.copies.append("in" if inwards else "out")
        return self.queue(stream, lambda: self._move(to, source, size_bytes))

    def _move(self, to: int, source: int, size_bytes: int) -> None:
        ctypes.memmove(self.view(to, size_bytes), self.view(source, size_bytes), size_bytes)

    def cudaEventCreate(self) -> Any:  # noqa: N802
        handle = next(self._handles)
        self.events[handle] = None
        return OK, handle

    def cudaEventRecord(self, event: int, stream: Any) -> Any:  # noqa: N802
        if event not in self.events:
            return (BAD_HANDLE,)
        self._homes[event] = int(stream)
        return self.queue(stream, lambda: self.events.__setitem__(event, self.clock_ms))

    def cudaEventElapsedTime(self, start: int, end: int) -> Any:  # noqa: N802
        first, last = self.events.get(start), self.events.get(end)
        if first is None or last is None:
            return binding.cudaError_t.cudaErrorNotReady, None
        return OK, last - first

    def cudaEventDestroy(self, event: int) -> Any:  # noqa: N802
        if event not in self.events:
            return (BAD_HANDLE,)
        del self.events[event]
        return (OK,)

    def cudaStreamBeginCapture(self, stream: Any, mode: Any) -> Any:  # noqa: N802
        if mode != binding.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal or int(stream) in self.capturing:
            return (INVALID,)
        self.capturing[int(stream)] = []
        return (OK,)

    def cudaStreamEndCapture(self, stream: Any) -> Any:  # noqa: N802
        if int(stream) not in self.capturing:
            return INVALID, None
        handle = next(self._handles)
        self.graphs[handle] = self.capturing.pop(int(stream))
        return OK, handle

    def cudaGraphInstantiate(self, graph: int, flags: int) -> Any:  # noqa: N802
        if graph not in self.graphs or flags:
            return INVALID, None
        handle = next(self._handles)
        self.executables[handle] = self.graphs[graph]
        return OK, handle

    def cudaGraphDestroy(self, graph: int) -> Any:  # noqa: N802
        return (OK,) if self.graphs.pop(graph, None) is not None else (BAD_HANDLE,)

    def cudaGraphLaunch(self, executable: int, stream: Any) -> Any:  # noqa: N802
        if executable not in self.executables:
            return (BAD_HANDLE,)
        self.streams[int(stream)].extend(self.executables[executable])
        return (OK,)

    def cudaGraphExecDestroy(self, executable: int) -> Any:  # noqa: N802
        return (OK,) if self.executables.pop(executable, None) is not None else (BAD_HANDLE,)
