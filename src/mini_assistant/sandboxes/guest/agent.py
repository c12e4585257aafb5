"""The program inside a sandbox: runs cells of code one after the other and keeps their variables.

Started as `python agent.py REQUESTS ANSWERS FOLDER`: the first two are descriptors (or paths) of pipes, the last is where the code
finds its files. Requests and answers are lines of JSON; agent_session.py is the other end. What the code puts out goes to the
descriptors 1 and 2 and never mixes with the answers. Uses the standard library only, and runs on CPython for WASI too, which has
neither threads nor signals. Nothing here protects the host: the code that runs here can do all that this program can.
"""

import ast
import base64
import builtins
import contextlib
import errno
import importlib
import importlib.abc
import importlib.machinery
import io
import json
import linecache
import os
import queue
import signal
import sys
import threading
import traceback
import types
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

FIGURES_BACKEND = "sandbox_figures"
_WARM_MODULES = ("numpy", "pandas", "matplotlib.pyplot")
_CELL_NAME = "<cell {}>"
_ERROR_CHARACTERS_MAX = 100
# The host answers at once; without an answer only the order of figures and text is at stake.
_GO_ON_SECONDS = 5.0


def main(arguments: Sequence[str]) -> None:
    """Answer requests until they end."""
    requests, answers, folder = arguments
    with open(_place(requests), "rb", buffering=0) as request_pipe, open(_place(answers), "wb", buffering=0) as answer_pipe:
        Agent(request_pipe, answer_pipe, os.path.realpath(folder)).serve()


def _place(argument: str) -> int | str:
    """What a pipe is opened by; programs that the code starts do not get a descriptor of it."""
    if not argument.isdigit():
        return argument
    with contextlib.suppress(AttributeError, OSError):  # WASI starts no programs
        os.set_inheritable(int(argument), False)
    return int(argument)


class Agent:
    """Cells, their namespace, and the pipes to the host."""

    def __init__(self, requests: io.RawIOBase, answers: io.RawIOBase, folder: str) -> None:
        self._requests = io.BufferedReader(requests)
        self._answers = answers
        self._folder = folder
        self._process_id = os.getpid()
        self._waiting: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._go_ons: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._has_threads = True
        self._answering = threading.RLock()
        self._cells = 0
        # What is asked for at the moment; empty between the calls.
        self._call = ""
        self._is_interruptible = False
        self._is_answering = False
        self._is_interrupt_due = False
        self._main_thread = threading.get_ident()
        self._module = types.ModuleType("__main__")
        self._streams = (_text_stream(1), _text_stream(2))

    def serve(self) -> None:
        """Answer requests until they end."""
        self._prepare_interpreter()
        self._answer("ready", "")
        for request in self._next_requests():
            self._call = request["id"]
            self._reset()
            error = None
            if request["do"] == "execute":
                error = self._run(request["code"])
            elif request["do"] == "warm":
                error = self._run_guarded(_load_warm_modules)
            if os.getpid() != self._process_id:  # a fork that came to the end of the code
                self._flush()
                os._exit(0)
            _stop_timers()
            self._flush()
            call, self._call = self._call, ""
            self._answer("done", call, error=error)

    def _prepare_interpreter(self) -> None:
        os.chdir(self._folder)
        sys.argv = [""]
        # Last: a file that happens to be called like a module must not stand for it.
        sys.path.append(self._folder)
        sys.modules["__main__"] = self._module
        sys.meta_path.append(_FiguresFinder(self))
        with contextlib.suppress(AttributeError):
            os.unsetenv("MPLBACKEND")  # for the programs that the code starts; this one has read its environment already
        self._module.__dict__["__builtins__"] = builtins
        builtins.input = _refuse_input
        sys.stdin = io.StringIO()
        threading.excepthook = self._show_thread_error

    def _reset(self) -> None:
        """Undo what an earlier cell may have done to the streams and to the signal that interrupts."""
        output, errors = self._streams
        self._streams = (output if _is_open(output) else _text_stream(1), errors if _is_open(errors) else _text_stream(2))
        sys.stdout, sys.stderr = self._streams
        with contextlib.suppress(AttributeError, ValueError, OSError):
            signal.signal(signal.SIGINT, self._on_interrupt)

    # ---- requests and answers ------------------------------------------------------------------------------------------------------

    def _next_requests(self) -> Iterator[dict[str, Any]]:
        """Requests for the main thread, in their order."""
        try:
            threading.Thread(target=self._read_requests, daemon=True).start()
        except RuntimeError:  # there are no threads: nothing can be interrupted
            self._has_threads = False
            yield from map(json.loads, self._requests)
            return
        while (request := self._waiting.get()) is not None:
            yield request

    def _read_requests(self) -> None:
        for line in self._requests:
            request = json.loads(line)
            if request["do"] == "interrupt":
                if request["id"] == self._call:
                    # To this thread, and not to the process: it must come out of a sleep.
                    signal.pthread_kill(self._main_thread, signal.SIGINT)
            elif request["do"] == "go_on":
                self._go_ons.put(None)
            else:
                self._waiting.put(request)
        self._waiting.put(None)

    def _on_interrupt(self, _number: int, _frame: types.FrameType | None) -> None:
        if self._is_answering:
            self._is_interrupt_due = True
        elif self._is_interruptible:
            raise KeyboardInterrupt

    def _answer(self, event: str, call: str, **fields: object) -> None:
        """Write one line, whole: an interrupt waits until it is out."""
        if os.getpid() != self._process_id:
            return
        left = memoryview(json.dumps({"id": call, "event": event, **fields}).encode() + b"\n")
        with self._answering, self._uninterrupted():
            while left:
                left = left[self._answers.write(left) or 0 :]

    @contextlib.contextmanager
    def _uninterrupted(self) -> Generator[None]:
        if threading.get_ident() != self._main_thread or self._is_answering:
            yield
            return
        self._is_answering = True
        try:
            yield
        finally:
            self._is_answering = False
        if self._is_interrupt_due:
            self._is_interrupt_due = False
            if self._is_interruptible:
                raise KeyboardInterrupt

    def _flush(self) -> None:
        for stream in (*self._streams, sys.stdout, sys.stderr):
            # What the code has put into their place may be anything.
            with contextlib.suppress(AttributeError, TypeError, ValueError, OSError):
                stream.flush()

    # ---- code ----------------------------------------------------------------------------------------------------------------------

    def _run(self, code: str) -> str | None:
        """Run a cell and show its figures. Returns the name of the error it ended with."""
        self._cells += 1
        name = _CELL_NAME.format(self._cells)
        linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)

        def run() -> None:
            body, last = _compiled(code, name)
            exec(body, self._module.__dict__)  # noqa: S102 - what this program is for
            if last is not None:
                self._show(eval(last, self._module.__dict__))  # noqa: S307

        error = self._run_guarded(run)
        return self._run_guarded(self.show_figures) or error

    def _run_guarded(self, run: Callable[[], None]) -> str | None:
        """Call what runs or asks code of a cell: whatever it raises is shown, and returned as a name."""
        try:
            try:
                self._is_interruptible = True
                run()
            except BaseException as exc:  # noqa: BLE001
                return self._show_error(exc)
            finally:
                self._is_interruptible = False
        except BaseException as exc:  # noqa: BLE001 - of an error that cannot be shown, or an interrupt on the way here
            self._is_interruptible = False
            return _error_name(exc)
        return None

    def _show(self, value: object) -> None:
        """Put out the value of a last expression."""
        if value is None:
            return
        figure_module = sys.modules.get("matplotlib.figure")
        if figure_module is not None and isinstance(value, figure_module.Figure):
            self.show_figure(value)
            return
        make_png = getattr(value, "_repr_png_", None)
        png = make_png() if callable(make_png) and not isinstance(value, type) else None
        if isinstance(png, bytes):
            self._send_image(png)
        else:
            sys.stdout.write(f"{value!r}\n")

    def _show_error(self, exc: BaseException) -> str | None:
        """Put out the traceback of an error; its name, None when it is how code ends well."""
        if isinstance(exc, SystemExit):
            if isinstance(exc.code, str):
                sys.stderr.write(f"{exc.code}\n")
            return None if exc.code in (None, 0) else "SystemExit"
        sys.stderr.write(self._traceback(exc))
        return _error_name(exc)

    def _traceback(self, exc: BaseException) -> str:
        shown = traceback.TracebackException(type(exc), exc, exc.__traceback__)
        left: list[traceback.TracebackException | None] = [shown]
        while left:
            part = left.pop()
            if part is not None:
                part.stack = traceback.StackSummary.from_list([frame for frame in part.stack if self._is_of_user(frame.filename)])
                left += [part.__cause__, part.__context__, *(part.exceptions or ())]
        return "".join(shown.format())

    def _is_of_user(self, filename: str) -> bool:
        return filename.startswith(("<cell ", self._folder + os.sep))

    def _show_thread_error(self, args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
            name = args.thread.name if args.thread is not None else "a thread"
            sys.stderr.write(f"Exception in {name}:\n{self._traceback(args.exc_value)}")

    # ---- figures -------------------------------------------------------------------------------------------------------------------

    def show_figures(self) -> None:
        """Send every open figure of pyplot, in their order, and close them."""
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is None or not hasattr(pyplot, "get_fignums"):  # it may be half imported
            return
        for number in pyplot.get_fignums():
            self.show_figure(pyplot.figure(number))

    def show_figure(self, figure: Any) -> None:
        """Send a figure, and close it if pyplot has it."""
        try:
            data = io.BytesIO()
            figure.savefig(data, format="png")
        finally:
            pyplot = sys.modules.get("matplotlib.pyplot")
            if pyplot is not None:
                pyplot.close(figure)
        self._send_image(data.getvalue())

    def _send_image(self, png: bytes) -> None:
        """Returns when the host has it: what is printed next comes behind it."""
        with contextlib.suppress(queue.Empty):
            self._go_ons.get_nowait()  # of an earlier figure, whose wait was interrupted
        self._flush()
        self._answer("image", self._call, png=base64.b64encode(png).decode("ascii"))
        if os.getpid() != self._process_id:
            return
        if not self._has_threads:
            self._requests.readline()
        elif threading.get_ident() == self._main_thread:
            with contextlib.suppress(queue.Empty):
                self._go_ons.get(timeout=_GO_ON_SECONDS)


class _FiguresFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes the backend that matplotlib is told to use (`module://sandbox_figures`), when it asks for it."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def find_spec(self, fullname: str, _path: object = None, _target: object = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(fullname, self) if fullname == FIGURES_BACKEND else None

    def exec_module(self, module: types.ModuleType) -> None:
        agent = self._agent
        bases: Any = importlib.import_module("matplotlib.backend_bases")
        agg: Any = importlib.import_module("matplotlib.backends.backend_agg")

        class Window(bases.FigureManagerBase):
            def show(self) -> None:
                agent.show_figure(self.canvas.figure)

            @classmethod
            def pyplot_show(cls, *, block: object = None) -> None:
                agent.show_figures()

        class FigureCanvas(agg.FigureCanvasAgg):
            manager_class = Window

        module.__dict__.update(FigureManager=Window, FigureCanvas=FigureCanvas)


def _text_stream(descriptor: int) -> io.TextIOWrapper:
    # Whole lines go out at once, so both streams and what other programs write keep their order.
    raw = io.FileIO(descriptor, "wb", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", newline="\n", line_buffering=True)


def _is_open(stream: io.TextIOWrapper) -> bool:
    try:
        return not stream.closed
    except ValueError:  # its buffer was taken out of it
        return False


def _compiled(code: str, name: str) -> tuple[types.CodeType, types.CodeType | None]:
    """The statements of a cell, and its last expression if that is to be shown."""
    tree = ast.parse(code, name)
    last = tree.body[-1] if tree.body else None
    if not isinstance(last, ast.Expr) or _is_hidden(code, last):
        return compile(tree, name, "exec", dont_inherit=True), None
    tree.body.pop()
    return compile(tree, name, "exec", dont_inherit=True), compile(ast.Expression(last.value), name, "eval", dont_inherit=True)


def _is_hidden(code: str, last: ast.Expr) -> bool:
    """Whether a semicolon follows, which says that the value is of no interest."""
    line = code.splitlines()[last.end_lineno - 1] if last.end_lineno is not None else ""
    return line.encode()[last.end_col_offset :].lstrip().startswith(b";")


def _error_name(exc: BaseException) -> str:
    """What the host is told of an error: it knows when memory or disk are short."""
    if isinstance(exc, MemoryError):
        return "MemoryError"
    if isinstance(exc, OSError):
        return f"OSError:{errno.errorcode.get(exc.errno or 0, '')}"  # by its name: WASI has other numbers
    return type(exc).__name__[:_ERROR_CHARACTERS_MAX]


def _load_warm_modules() -> None:
    for name in _WARM_MODULES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def _refuse_input(_prompt: object = "", /) -> str:
    raise EOFError("input() cannot be used here: nobody is there to answer. Put the value into the code.")


def _stop_timers() -> None:
    """What code has set up to be woken by would strike the agent."""
    if hasattr(signal, "setitimer"):
        for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
            signal.setitimer(timer, 0)


if __name__ == "__main__":
    main(sys.argv[1:])
