"""Runs inside a kernel, not in the server: sets the kernel up, and does the file work that a kernel gateway has no route for.

The server sends this source to a fresh kernel and then calls `answer` in it. It imports the standard library only. The code of the model
runs in the same interpreter and can change all of this: what comes back is worth no more than anything else that the kernel says.
"""

import base64
import contextlib
import importlib
import json
import os
import stat
import sys
import warnings
from typing import Any


def answer(order: str) -> str:
    """What came of an order. Both are base64 of one line of JSON, then bytes."""
    head, _, data = base64.b64decode(order).partition(b"\n")
    arguments: dict[str, Any] = json.loads(head)
    try:
        result, content = _ORDERS[arguments.pop("do")](data=data, **arguments)
    except OSError as exc:
        result, content = {"error": exc.strerror or str(exc)}, b""
    return base64.b64encode(json.dumps(result).encode() + b"\n" + content).decode()


def _set_up(*, data: bytes, folder: str) -> tuple[dict[str, Any], bytes]:
    os.chdir(folder)
    shell: Any = sys.modules["IPython"].get_ipython()
    shell.InteractiveTB.set_mode(mode="Plain")
    # One stream, so that what is written to both keeps its order.
    sys.stderr = sys.stdout
    os.dup2(1, 2)
    # IPython's own end the kernel and not only the code.
    shell.user_ns["exit"] = shell.user_ns["quit"] = sys.exit
    warnings.filterwarnings("ignore", "To exit: use")
    return {"is_empty": not os.listdir(), "is_writable": os.access(".", os.W_OK)}, b""


def _warm_up(*, data: bytes, folder: str, modules: list[str]) -> tuple[dict[str, Any], bytes]:
    for module in modules:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    return {}, b""


def _list(*, data: bytes, folder: str, entries_max: int) -> tuple[dict[str, Any], bytes]:
    files: list[tuple[str, int, str]] = []
    waiting, left = [""], entries_max
    while waiting and left > 0:
        prefix = waiting.pop()
        with contextlib.suppress(OSError), os.scandir(os.path.join(folder, prefix)) as entries:
            for entry in entries:
                left -= 1
                # What vanishes meanwhile, or has a name that is no text, is left out.
                with contextlib.suppress(OSError, UnicodeEncodeError):
                    entry.name.encode()
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(status.st_mode):
                        waiting.append(f"{prefix}{entry.name}/")
                    elif stat.S_ISREG(status.st_mode):
                        version = f"{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}-{status.st_ctime_ns:x}"
                        files.append((f"{prefix}{entry.name}", status.st_size, version))
                if left <= 0:
                    break
    return {"files": files}, b""


def _read(*, data: bytes, folder: str, name: str, start: int, size: int) -> tuple[dict[str, Any], bytes]:
    file = os.open(_place(folder, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise FileNotFoundError("no regular file")
        return {}, os.pread(file, size, start)
    finally:
        os.close(file)


def _append(*, data: bytes, folder: str, unfinished: str) -> tuple[dict[str, Any], bytes]:
    with open(os.path.join(folder, unfinished), "ab") as file:
        file.write(data)
    return {}, b""


def _finish(*, data: bytes, folder: str, unfinished: str, name: str) -> tuple[dict[str, Any], bytes]:
    os.makedirs(os.path.join(folder, os.path.dirname(name)), exist_ok=True)
    os.replace(os.path.join(folder, unfinished), _place(folder, name))
    return {}, b""


def _drop(*, data: bytes, folder: str, unfinished: str) -> tuple[dict[str, Any], bytes]:
    os.unlink(os.path.join(folder, unfinished))
    return {}, b""


def _clear(*, data: bytes, folder: str) -> tuple[dict[str, Any], bytes]:
    for root, folders, files in os.walk(folder, topdown=False):
        for name in files:
            os.unlink(os.path.join(root, name))
        for name in folders:
            path = os.path.join(root, name)
            os.unlink(path) if os.path.islink(path) else os.rmdir(path)
    return {}, b""


def _place(folder: str, name: str) -> str:
    """A path in the folder that leads over no link."""
    parent, last = os.path.split(os.path.join(os.path.realpath(folder), name))
    if os.path.realpath(parent) != parent:
        raise FileNotFoundError("it is behind a link")
    return os.path.join(parent, last)


_ORDERS = {
    "set_up": _set_up,
    "warm_up": _warm_up,
    "list": _list,
    "read": _read,
    "append": _append,
    "finish": _finish,
    "drop": _drop,
    "clear": _clear,
}
