"""Runs CPython for WASI with wasmtime: one session, in a process of its own.

The Python of the prepared environment runs this file by its path; it imports nothing of this package. It stands on the safe side of the
boundary: the interpreter, with the code of a model in it, is a WebAssembly module that reaches what it is given below and nothing else.

    compile SOURCE TARGET       make native code of the module, once and ahead
    snapshot ORDER              run a program and keep the memory of the interpreter after it
    run ORDER                   run a session that begins with that memory, in milliseconds and with its imports made

ORDER is the JSON of an `Order`. wasmtime trusts native code and snapshots: both must come from a folder that only the owner writes.
"""

import contextlib
import ctypes
import functools
import importlib
import json
import mmap
import os
import resource
import stat
import struct
import sys
import threading
from collections.abc import Iterator
from typing import Any, TypedDict

# Only the prepared environment has it, so nothing is known of its types where this is checked.
wasmtime: Any = importlib.import_module("wasmtime")

# Python nests its calls as calls of WebAssembly: with less than this, deep recursion would end the session instead of raising.
_WASM_STACK_BYTES = 8 * 1024 * 1024
_THREAD_STACK_BYTES = 2 * _WASM_STACK_BYTES
_PAGE_BYTES = 64 * 1024
_FRAME_BYTES_MAX = 32 * 1024 * 1024
_READ_BYTES = 64 * 1024
_NUMBER_BYTES_MAX = 20
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# WASI: its module, the calls that take space, how many pieces one of them writes at most, and its numbers for flags and errors.
_WASI = "wasi_snapshot_preview1"
_WRITES = {"fd_write", "fd_pwrite"}
_CREATES = {"path_open", "path_create_directory", "path_symlink", "path_link"}
_PIECES_MAX = 1024
_OUTPUTS = (1, 2)
_OPEN_FLAGS_AT, _CREATE = 4, 1
_EINVAL, _ENOSPC = 28, 51
# What wasmtime itself may take beside the memory of the module, whose address space is reserved before this counts.
_HOST_BYTES_MAX = 512 * 1024 * 1024
_OPEN_FILES_MAX = 256
_HOME = "/tmp"  # noqa: S108 - of the guest
# Runs in the guest when its memory has come from the snapshot, which all sessions have in common. %r is the agent.
_BEGIN = """
def begin(source):
    import io, random, sys, types
    import _host, numpy
    class Door(io.RawIOBase):
        def readable(self):
            return True
        def writable(self):
            return True
        def readinto(self, buffer):
            data = _host.call(b"r%%d" %% len(buffer))
            buffer[: len(data)] = data
            return len(data)
        def write(self, data):
            _host.call(b"w" + data)
            return len(data)
    random.seed()
    numpy.random.seed()
    agent = types.ModuleType("agent")
    sys.modules["agent"] = agent
    exec(compile(source, "agent.py", "exec"), agent.__dict__)
    agent.Agent(Door(), Door(), "/mnt/data").serve()
begin(%r)
"""


class Order(TypedDict):
    """What to run.

    folders: (host folder, guest folder, whether it may be written), the same ones for a snapshot and for what goes on from it. snapshot:
    file of the memory. program: file of the code to run: what to load before the snapshot, or the agent. disk_bytes_max, files_max: of
    all folders that may be written. requests, answers: descriptors of the pipes; -1 for none.
    """

    compiled: str
    snapshot: str
    folders: list[tuple[str, str, bool]]
    program: str
    memory_bytes_max: int
    disk_bytes_max: int
    files_max: int
    requests: int
    answers: int


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    mode, *rest = arguments
    if mode == "compile":
        _compile(*rest)
        return 0
    order: Order = json.loads(rest[0])
    statuses: list[int] = []
    # Not in the main thread, whose stack is as large as the machine likes.
    threading.stack_size(_THREAD_STACK_BYTES)
    thread = threading.Thread(target=lambda: statuses.append(_snapshot(order) if mode == "snapshot" else _run(order)))
    thread.start()
    thread.join()
    return statuses[0] if statuses else 1


def _engine() -> Any:
    """The same for compiling and for running: native code only fits the settings that it was made with.

    It counts neither instructions nor time, which would cost speed: a session is stopped by killing its process.
    """
    config = wasmtime.Config()
    # Must not be smaller than the stack below, and has no property of its own.
    wasmtime._bindings.wasmtime_config_async_stack_size_set(config.ptr(), _WASM_STACK_BYTES)
    config.max_wasm_stack = _WASM_STACK_BYTES
    return wasmtime.Engine(config)


def _compile(source: str, target: str) -> None:
    with open(source, "rb") as file:
        code = wasmtime.Module(_engine(), file.read()).serialize()
    _write_new(target, code)


def _text_of(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def _write_new(target: str, data: Any) -> None:
    with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "wb") as file:
        file.write(data)


def _snapshot(order: Order) -> int:
    interpreter = _Interpreter(order)
    status = interpreter.run(_text_of(order["program"]))
    if status == 0:
        _write_new(order["snapshot"], interpreter.memory_bytes())
    return status


def _run(order: Order) -> int:
    try:
        interpreter = _Interpreter(order)
        interpreter.restore(order["snapshot"])
        _set_limits(order["disk_bytes_max"])
        return interpreter.run(_BEGIN % _text_of(order["program"]))
    except wasmtime.ExitTrap as exc:
        return exc.code
    except (wasmtime.Trap, wasmtime.WasmtimeError, OSError, IndexError) as exc:
        sys.stderr.write(f"The interpreter stopped: {str(exc).splitlines()[0]}\n")
        return 1


class _Interpreter:
    """An instance of the module: CPython that has started, and what it can reach."""

    def __init__(self, order: Order) -> None:
        engine = _engine()
        module = wasmtime.Module.deserialize_file(engine, order["compiled"])
        self._requests, self._answers = order["requests"], order["answers"]
        self._store = wasmtime.Store(engine)
        self._store.set_limits(memory_size=order["memory_bytes_max"])
        self._store.set_wasi(_wasi(order["folders"]))
        linker = wasmtime.Linker(engine)
        linker.define_wasi()
        linker.allow_shadowing = True
        self._quota = _Quota([folder for folder, _, is_writable in order["folders"] if is_writable], order)
        self._metered = {each.name: each.type for each in module.imports if each.module == _WASI and each.name in _CREATES | _WRITES}
        self._wasi_calls: Any = {}
        for name, kind in self._metered.items():
            linker.define_func(_WASI, name, kind, functools.partial(self._meter, name), access_caller=True)
        number = wasmtime.ValType.i32()
        linker.define_func("host", "call", wasmtime.FuncType([number] * 4, [number]), self._answer_guest, access_caller=True)
        self._exports = linker.instantiate(self._store, module).exports(self._store)
        self._memory = self._exports["memory"]
        self._wasi_calls = self._forwarder(engine)

    def run(self, code: str) -> int:
        """Run code at the top of `__main__`. Returns 0 when it ended well."""
        data = code.encode()
        address = self._exports["host_alloc"](self._store, len(data)) & 0xFFFFFFFF
        self._memory.write(self._store, data, address)
        return self._exports["turn"](self._store, address, len(data))

    def memory_bytes(self) -> bytearray:
        """All of its memory."""
        return self._memory.read(self._store, 0, self._memory.data_len(self._store))

    def restore(self, snapshot: str) -> None:
        """Go on from a snapshot: all that changes in the module between two turns lies in its memory.

        The file is mapped over the memory, as wasmtime does it with the first content of a module: pages are shared by all sessions until
        one writes to them, and nothing is copied before.
        """
        with open(snapshot, "rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            missing_bytes = size_bytes - self._memory.data_len(self._store)
            if size_bytes % _PAGE_BYTES or missing_bytes < 0:
                raise OSError("The snapshot does not belong to the module.")
            self._memory.grow(self._store, missing_bytes // _PAGE_BYTES)
            address = ctypes.cast(self._memory.data_ptr(self._store), ctypes.c_void_p)
            _map_over(address, size_bytes, file.fileno())

    def _forwarder(self, engine: Any) -> Any:
        """The metered calls of WASI, to be called from here. WASI serves a module with a memory: this one has that of the guest."""
        imports: list[str] = []
        functions: list[str] = []
        for name, kind in self._metered.items():
            parameters = " ".join(map(str, kind.params))
            imports.append(f'(import "{_WASI}" "{name}" (func ${name} (param {parameters}) (result i32)))')
            passed = " ".join(f"(local.get {number})" for number in range(len(kind.params)))
            functions.append(f'(func (export "{name}") (param {parameters}) (result i32) (call ${name} {passed}))')
        text = " ".join(["(module", *imports, '(import "guest" "memory" (memory 0)) (export "memory" (memory 0))', *functions, ")"])
        linker = wasmtime.Linker(engine)
        linker.define_wasi()
        linker.define(self._store, "guest", "memory", self._memory)
        return linker.instantiate(self._store, wasmtime.Module(engine, text)).exports(self._store)

    def _meter(self, name: str, caller: Any, *arguments: int) -> int:
        """A call of the guest to WASI that can take space: made when there is some. Returns its error number, 0 for none."""
        if name in _WRITES:
            descriptor, address, count = (number & 0xFFFFFFFF for number in arguments[:3])
            if count > _PIECES_MAX:
                return _EINVAL
            pieces = caller["memory"].read(caller, address, address + 8 * count)
            size_bytes = sum(length for _, length in struct.iter_unpack("<II", pieces)) if len(pieces) == 8 * count else 0
            if descriptor not in _OUTPUTS and not self._quota.has_taken_bytes(size_bytes):
                return _ENOSPC
        elif (name != "path_open" or arguments[_OPEN_FLAGS_AT] & _CREATE) and not self._quota.has_taken_entry():
            return _ENOSPC
        return self._wasi_calls[name](caller, *arguments)

    def _answer_guest(self, caller: Any, address: int, length: int, at_answer: int, at_length: int) -> int:
        """The one call of the guest that is not WASI. Returns 0, or less when it makes no sense.

        `r` and a number reads so many bytes of the requests at most, none at their end; `w` and bytes writes them to the answers.
        """
        memory = caller["memory"]
        address, length, at_answer, at_length = (number & 0xFFFFFFFF for number in (address, length, at_answer, at_length))
        if not 0 < length <= _FRAME_BYTES_MAX:
            return -2
        frame = bytes(memory.read(caller, address, address + length))
        answer = b""
        if frame[:1] == b"w":
            _write_all(self._answers, memoryview(frame)[1:])
        elif frame[:1] == b"r" and length <= _NUMBER_BYTES_MAX and frame[1:].isdigit():
            answer = os.read(self._requests, min(int(frame[1:]), _READ_BYTES))
        else:
            return -2
        place = caller["host_alloc"](caller, len(answer)) & 0xFFFFFFFF
        memory.write(caller, answer, place)
        memory.write(caller, place.to_bytes(4, "little"), at_answer)
        memory.write(caller, len(answer).to_bytes(4, "little"), at_length)
        return 0


class _Quota:
    """What the guest may still write. It counts down; when nothing is left, it looks what is really there. The guest waits meanwhile."""

    def __init__(self, folders: list[str], order: Order) -> None:
        self._folders = folders
        self._bytes_max = order["disk_bytes_max"]
        self._entries_max = order["files_max"]
        self._bytes_left = 0
        self._entries_left = 0

    def has_taken_bytes(self, count: int) -> bool:
        """Whether they fit; then they count."""
        if count > self._bytes_left:
            self._measure()
        if count > self._bytes_left:
            return False
        self._bytes_left -= count
        return True

    def has_taken_entry(self) -> bool:
        """Whether there is room for a file, folder or link; then it counts."""
        if self._entries_left < 1:
            self._measure()
        if self._entries_left < 1:
            return False
        self._entries_left -= 1
        return True

    def _measure(self) -> None:
        self._bytes_left, self._entries_left = self._bytes_max - _nameless_bytes(), self._entries_max
        for folder in self._folders:
            for status in _statuses_below(folder):
                self._bytes_left -= status.st_blocks * 512
                self._entries_left -= 1


def _nameless_bytes() -> int:
    """What files take that are open here, and that are in no folder any more."""
    found = 0
    for descriptor in range(3, _OPEN_FILES_MAX):
        with contextlib.suppress(OSError):
            status = os.fstat(descriptor)
            found += status.st_blocks * 512 if stat.S_ISREG(status.st_mode) and status.st_nlink == 0 else 0
    return found


def _statuses_below(folder: str) -> Iterator[os.stat_result]:
    """Of everything in a folder, however deep. It goes back by `..`, which nobody changes: the guest waits."""
    opened = os.open(folder, _FOLDER_FLAGS)
    try:
        levels = [os.listdir(opened)]
        while levels:
            if not levels[-1]:
                levels.pop()
                opened = _moved(opened, "..") if levels else opened
                continue
            name = levels[-1].pop()
            with contextlib.suppress(FileNotFoundError):  # the server may have moved a file into its place
                status = os.stat(name, dir_fd=opened, follow_symlinks=False)
                yield status
                if stat.S_ISDIR(status.st_mode):
                    opened = _moved(opened, name)
                    levels.append(os.listdir(opened))
    finally:
        os.close(opened)


def _moved(folder: int, name: str) -> int:
    below = os.open(name, _FOLDER_FLAGS, dir_fd=folder)
    os.close(folder)
    return below


def _wasi(folders: list[tuple[str, str, bool]]) -> Any:
    """What the guest can reach: these folders, clocks, random numbers, and two ends of output."""
    wasi = wasmtime.WasiConfig()
    wasi.argv = ["python"]
    wasi.env = [("HOME", _HOME), ("TMPDIR", _HOME), ("PYTHONTZPATH", ""), ("MPLBACKEND", "module://sandbox_figures")]
    for folder, place, is_writable in folders:
        wasi.preopen_dir(folder, place, is_writable)
    wasi.inherit_stdout()
    wasi.inherit_stderr()
    return wasi


def _map_over(address: ctypes.c_void_p, size_bytes: int, descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    map_fixed = 0x10
    found = libc.mmap(address, size_bytes, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | map_fixed, descriptor, 0)
    if found != address.value:
        raise OSError(ctypes.get_errno(), "The snapshot cannot be mapped.")


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _set_limits(file_bytes_max: int) -> None:
    """Bound this process, which holds all that the guest makes wasmtime take."""
    with open("/proc/self/statm", encoding="ascii") as file:
        taken_bytes = int(file.read().split()[0]) * resource.getpagesize()
    for kind, limit in (
        (resource.RLIMIT_AS, taken_bytes + _HOST_BYTES_MAX),
        (resource.RLIMIT_FSIZE, file_bytes_max),
        (resource.RLIMIT_NOFILE, _OPEN_FILES_MAX),
    ):
        resource.setrlimit(kind, (limit, limit))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
