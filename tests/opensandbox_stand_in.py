"""A stand-in for an OpenSandbox server with its sandboxes: the same API on loopback, over real Jupyter kernels of this machine.

It follows specs/sandbox-lifecycle.yml and specs/execd-api.yaml of OpenSandbox 1.1, and the daemon itself where the texts are silent: only
what a last expression shows is passed on, an end is told for whatever becomes idle, paths have their variables replaced, events are JSON
with a blank line and no `data:`. It is strict: what the API does not know is refused. There is no isolation; only test code runs here.
`/mnt/data` of a sandbox is a folder of the test: the path is replaced in code, and back in what comes out.
"""

import asyncio
import contextlib
import datetime
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

KEY = "stand-in-key"
JUPYTER = Path(sys.prefix) / "jupyter" / "bin" / "python"
EXECD_PORT = 44772
EGRESS_PORT = 18080
DATA = "/mnt/data"

# Ends with the process of the test, however that ends.
_GATEWAY = "import ctypes; ctypes.CDLL(None).prctl(1, 9); from kernel_gateway import launch_instance; launch_instance()"

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class KernelGateway:
    """A gateway process of this machine, which stands for the Jupyter server inside of the image."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.token = secrets.token_hex(8)
        environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "LANG": "C.UTF-8", "KG_AUTH_TOKEN": self.token}
        self._log = open(folder / "gateway.log", "wb")  # noqa: SIM115 - closed by `close`
        self._process = subprocess.Popen(
            [str(JUPYTER), "-c", _GATEWAY, "--KernelGatewayApp.ip=127.0.0.1", f"--KernelGatewayApp.port={port}",
             "--KernelGatewayApp.port_retries=0", "--KernelManager.shutdown_wait_time=0.2"],
            env=environment, cwd=folder, stdout=self._log, stderr=self._log, start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            is_starting = self._process.poll() is None and time.monotonic() < deadline
            assert is_starting, (folder / "gateway.log").read_text()
            time.sleep(0.05)

    def close(self) -> None:
        """End it with its kernels, which have sessions of their own."""
        kernels = subprocess.run(["ps", "-o", "pid=", "--ppid", str(self._process.pid)], capture_output=True, text=True, check=False)
        for process_id in [*map(int, kernels.stdout.split()), self._process.pid]:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process_id, signal.SIGKILL)
        self._process.wait()
        self._log.close()


@dataclass
class StandInSandbox:
    """A sandbox with its execd. polls_left: how often its state is asked before it runs."""

    id: str
    body: dict[str, Any]
    folder: Path
    expires_at: datetime.datetime | None
    polls_left: int
    pings_left: int
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    state: str = "Pending"
    kernels: dict[str, str] = field(default_factory=dict[str, str])
    processes: set[int] = field(default_factory=set[int])
    busy: set[str] = field(default_factory=set[str])


class Refusal(Exception):
    """Answered as the API's error."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


def refuse_unless(is_fine: bool, message: str, status: int = 400) -> None:
    if not is_fine:
        raise Refusal(status, "INVALID_REQUEST", message)


class OpenSandboxStandIn:
    """The server. `requests` are all that came; `overrides` answer instead of it, by method and end of the path."""

    def __init__(self, folder: Path, gateway: KernelGateway, *, is_proxied: bool = False) -> None:
        self._folder = folder
        self._gateway = gateway
        self._is_proxied = is_proxied
        self._runner: web.AppRunner | None = None
        self._client: aiohttp.ClientSession | None = None
        self.polls_before_running = 0
        self.pings_before_ready = 0
        self.life_seconds_told: int | None = None
        self.sandboxes: dict[str, StandInSandbox] = {}
        self.ended: list[str] = []
        self.requests: list[tuple[str, str]] = []
        self.renewals: list[datetime.datetime] = []
        self.overrides: dict[tuple[str, str], Answer] = {}
        self.url = ""

    async def __aenter__(self) -> "OpenSandboxStandIn":
        app = web.Application(client_max_size=64 * 1024**2)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.host = f"127.0.0.1:{self._runner.addresses[0][1]}"
        self.url = f"http://{self.host}"
        self._client = aiohttp.ClientSession(self._gateway.url, headers={"Authorization": f"token {self._gateway.token}"})
        return self

    async def __aexit__(self, *_: object) -> None:
        for sandbox in list(self.sandboxes.values()):
            await self._end(sandbox)
        assert self._runner is not None
        assert self._client is not None
        await self._runner.cleanup()
        await self._client.close()

    async def end_all(self) -> None:
        """As an engine that has lost its sandboxes."""
        for sandbox in list(self.sandboxes.values()):
            await self._end(sandbox)

    # ---- who answers -------------------------------------------------------------------------------------------------------------------

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.path))
        try:
            for (method, end), answer in self.overrides.items():
                if request.method == method and request.path.endswith(end):
                    return await answer(request)
            return await self._routed(request)
        except Refusal as refusal:
            return web.json_response({"code": refusal.code, "message": refusal.message}, status=refusal.status)

    async def _routed(self, request: web.Request) -> web.StreamResponse:
        is_keyed = request.headers.get("OPEN-SANDBOX-API-KEY") == KEY
        if proxied := re.fullmatch(r"/v1/sandboxes/([^/]+)/proxy/44772(/.*)", request.path):
            refuse_unless(is_keyed, "no key", 401)
            refuse_unless(request.method != "POST" or request.content_length is not None, "the proxy needs a Content-Length", 411)
            return await self._execd(request, self._running(proxied[1]), proxied[2])
        if direct := re.fullmatch(r"/box/([^/]+)(/.*)", request.path):
            refuse_unless("OPEN-SANDBOX-API-KEY" not in request.headers, "the key of the server came into a sandbox")
            sandbox = self._running(direct[1])
            refuse_unless(request.headers.get("X-EXECD-ACCESS-TOKEN") == sandbox.token, "no token", 401)
            return await self._execd(request, sandbox, direct[2])
        refuse_unless(is_keyed, "no key", 401)
        return await self._lifecycle(request)

    def _running(self, sandbox_id: str) -> StandInSandbox:
        sandbox = self.sandboxes.get(sandbox_id)
        if sandbox is None or sandbox.state != "Running":
            raise Refusal(404, "NOT_FOUND", f"sandbox {sandbox_id} not found")
        return sandbox

    # ---- the server --------------------------------------------------------------------------------------------------------------------

    async def _lifecycle(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/v1/sandboxes":
            refuse_unless(request.method == "POST", "method not allowed", 405)
            return web.json_response(self._create(await body_of(request)), status=202)
        found = re.fullmatch(r"/v1/sandboxes/([^/]+)(/renew-expiration|/endpoints/(\d+))?", request.path)
        refuse_unless(found is not None, "no such path", 404)
        assert found is not None
        sandbox = self.sandboxes.get(found[1])
        if sandbox is None:
            raise Refusal(404, "NOT_FOUND", f"sandbox {found[1]} not found")
        match (request.method, found[2] and found[2].split("/")[1]):
            case ("GET", None):
                sandbox.polls_left -= 1
                if sandbox.polls_left < 0 and sandbox.state == "Pending":
                    sandbox.state = "Running"
                return web.json_response(self._told(sandbox) | {"image": sandbox.body["image"]})
            case ("DELETE", None):
                await self._end(sandbox)
                return web.Response(status=204)
            case ("GET", "endpoints"):
                return web.json_response(self._endpoint(sandbox, request, int(found[3])))
            case ("POST", "renew-expiration"):
                body = await body_of(request)
                refuse_unless(set(body) == {"expiresAt"}, "unknown fields")
                wanted = datetime.datetime.fromisoformat(body["expiresAt"])
                refuse_unless(wanted.tzinfo is not None and wanted > now(), "expiresAt must be in the future")
                refuse_unless(sandbox.expires_at is None or wanted > sandbox.expires_at, "expiresAt must be after the present one")
                sandbox.expires_at = wanted
                self.renewals.append(wanted)
                return web.json_response({"expiresAt": wanted.isoformat()})
            case _:
                raise Refusal(405, "METHOD_NOT_ALLOWED", "method not allowed")

    def _create(self, body: dict[str, Any]) -> dict[str, Any]:
        known = {"image", "snapshotId", "platform", "timeout", "resourceLimits", "resourceRequests", "env", "metadata", "lifecycle",
                 "entrypoint", "networkPolicy", "credentialProxy", "secureAccess", "volumes", "extensions"}  # fmt: skip
        refuse_unless(set(body) <= known, f"unknown fields {set(body) - known}")
        refuse_unless(isinstance(body.get("image", {}).get("uri"), str) and set(body["image"]) <= {"uri", "auth"}, "image")
        refuse_unless(is_list_of_text(body.get("entrypoint")) and body["entrypoint"] != [], "entrypoint")
        refuse_unless(is_map_of_text(body.get("resourceLimits")), "resourceLimits")
        refuse_unless(is_map_of_text(body.get("env", {})), "env")
        label = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
        refuse_unless(
            is_map_of_text(body.get("metadata", {})) and all(label.fullmatch(v) for v in body.get("metadata", {}).values()), "metadata"
        )
        timeout = body.get("timeout")
        refuse_unless(timeout is None or (isinstance(timeout, int) and timeout >= 60), "timeout")
        policy = body.get("networkPolicy", {})
        refuse_unless(
            set(policy) <= {"defaultAction", "egress"} and policy.get("defaultAction", "deny") in ("allow", "deny"), "networkPolicy"
        )
        sandbox_id = str(uuid.uuid4())
        folder = self._folder / sandbox_id
        folder.mkdir()
        life_seconds = self.life_seconds_told or timeout
        expires_at = now() + datetime.timedelta(seconds=life_seconds) if life_seconds is not None else None
        sandbox = StandInSandbox(sandbox_id, body, folder, expires_at, self.polls_before_running, self.pings_before_ready)
        sandbox.state = "Pending" if sandbox.polls_left else "Running"
        self.sandboxes[sandbox_id] = sandbox
        return self._told(sandbox)

    def _told(self, sandbox: StandInSandbox) -> dict[str, Any]:
        told: dict[str, Any] = {
            "id": sandbox.id,
            "status": {"state": sandbox.state, "reason": "as_told", "message": "", "lastTransitionAt": now().isoformat()},
            "metadata": sandbox.body.get("metadata", {}),
            "createdAt": now().isoformat(),
            "entrypoint": sandbox.body["entrypoint"],
        }
        if sandbox.expires_at is not None:
            told["expiresAt"] = sandbox.expires_at.isoformat().replace("+00:00", "Z")
        return told

    def _endpoint(self, sandbox: StandInSandbox, request: web.Request, port: int) -> dict[str, Any]:
        refuse_unless(set(request.query) <= {"use_server_proxy", "expires"}, "unknown query")
        refuse_unless(sandbox.state == "Running", "not running", 404)
        if port == EGRESS_PORT:
            return {"endpoint": f"{self.host}/egress/{sandbox.id}"}
        refuse_unless(port == EXECD_PORT, "nothing listens there", 404)
        is_proxy_wanted = request.query.get("use_server_proxy", "false") == "true"
        refuse_unless(not self._is_proxied or is_proxy_wanted, "the sandboxes cannot be reached directly")
        if is_proxy_wanted:
            return {"endpoint": f"{self.host}/v1/sandboxes/{sandbox.id}/proxy/{EXECD_PORT}"}
        return {"endpoint": f"{self.host}/box/{sandbox.id}", "headers": {"X-EXECD-ACCESS-TOKEN": sandbox.token}}

    async def _end(self, sandbox: StandInSandbox) -> None:
        if self.sandboxes.pop(sandbox.id, None) is not None:
            self.ended.append(sandbox.id)
            for kernel in sandbox.kernels.values():
                await self._delete_kernel(kernel)
            shutil.rmtree(sandbox.folder, ignore_errors=True)

    # ---- execd -------------------------------------------------------------------------------------------------------------------------

    async def _execd(self, request: web.Request, sandbox: StandInSandbox, path: str) -> web.StreamResponse:
        match (request.method, path):
            case ("GET", "/ping"):
                sandbox.pings_left -= 1
                refuse_unless(sandbox.pings_left < 0, "not ready", 503)
                return web.Response()
            case ("POST", "/code/context"):
                return await self._create_context(request, sandbox)
            case ("POST", "/code"):
                return await self._run(request, sandbox)
            case ("DELETE", "/code"):
                kernel = sandbox.kernels.get(request.query.get("id", ""))
                if kernel is None:
                    raise Refusal(500, "RUNTIME_ERROR", "error interruptting code context. no such session")
                await self._gateway_call("POST", f"/api/kernels/{kernel}/interrupt")
                return web.Response()
            case ("POST", "/directories"):
                return await self._make_folders(request, sandbox)
            case ("DELETE", "/directories"):
                for place in [self._place(sandbox, each) for each in request.query.getall("path")]:
                    if place.is_dir() and not place.is_symlink():
                        shutil.rmtree(place)
                    else:
                        place.unlink(missing_ok=True)
                return web.Response()
            case ("DELETE", "/files"):
                for place in [self._place(sandbox, each) for each in request.query.getall("path")]:
                    refuse_unless(not place.is_dir(), "path is a directory", 500)
                    if place.exists():
                        place.unlink()
                return web.Response()
            case ("GET", "/files/info"):
                places = {each: self._place(sandbox, each) for each in request.query.getall("path")}
                return web.json_response({each: self._info(sandbox, place) for each, place in places.items()})
            case ("GET", "/files/search"):
                return self._search(request, sandbox)
            case ("POST", "/files/upload"):
                return await self._upload(request, sandbox)
            case ("GET", "/files/download"):
                return self._download(request, sandbox)
            case _ if request.method == "DELETE" and path.startswith("/code/contexts/"):
                kernel = sandbox.kernels.pop(path.rpartition("/")[2], None)
                if kernel is None:
                    raise Refusal(404, "CONTEXT_NOT_FOUND", "context not found")
                await self._delete_kernel(kernel)
                return web.Response()
            case _:
                raise Refusal(404, "NOT_FOUND", "no such path")

    def _place(self, sandbox: StandInSandbox, path: str) -> Path:
        """Where a path of the sandbox is on this machine, with its variables replaced as execd does."""
        variables: dict[str, str] = sandbox.body.get("env", {})

        def value(found: re.Match[str]) -> str:
            name = found[1] or found[2]
            if name not in variables:
                raise Refusal(500, "RUNTIME_ERROR", f"path references undefined environment variables: {name}")
            return variables[name]

        path = re.sub(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}|\$([A-Za-z_][A-Za-z0-9_]*)", value, path)
        if re.fullmatch(r"/proc/\d+", path):
            return Path(path)
        if path != DATA and not path.startswith(f"{DATA}/"):
            raise Refusal(404, "FILE_NOT_FOUND", f"file not found. {path}")
        # Not resolved: links are the business of each call.
        assert ".." not in path.split("/"), path
        return sandbox.folder / "data" / path[len(DATA) + 1 :] if path != DATA else sandbox.folder / "data"

    def _info(self, sandbox: StandInSandbox, place: Path) -> dict[str, Any]:
        try:
            status = place.lstat()
        except (FileNotFoundError, NotADirectoryError):
            raise Refusal(404, "FILE_NOT_FOUND", "file not found") from None
        except OSError as exc:
            raise Refusal(500, "RUNTIME_ERROR", f"error accessing file: {exc}") from None
        kind = "symlink" if place.is_symlink() else "directory" if place.is_dir() else "file" if place.is_file() else "other"
        data = str(sandbox.folder / "data")
        told = datetime.datetime.fromtimestamp(status.st_mtime, datetime.UTC).isoformat().replace("+00:00", "Z")
        return {"path": str(place).encode("utf-8", "surrogateescape").decode("utf-8", "replace").replace(data, DATA), "type": kind,
                "size": status.st_size, "modified_at": told[:-1].ljust(26, "0") + f"{status.st_mtime_ns % 1000:03}Z", "created_at": told,
                "owner": "root", "group": "root", "mode": int(f"{status.st_mode & 0o777:o}")}  # fmt: skip

    async def _make_folders(self, request: web.Request, sandbox: StandInSandbox) -> web.Response:
        for path, permission in (await body_of(request)).items():
            refuse_unless(set(permission) <= {"mode", "owner", "group"} and isinstance(permission.get("mode"), int), "permission")
            self._place(sandbox, path).mkdir(parents=True, exist_ok=True)
        return web.Response()

    def _search(self, request: web.Request, sandbox: StandInSandbox) -> web.Response:
        refuse_unless(set(request.query) <= {"path", "pattern"}, "unknown query")
        root = self._place(sandbox, request.query["path"])
        refuse_unless(root.exists(), "file not found", 404)
        places = [Path(folder) / name for folder, folders, names in os.walk(root) for name in [*names, *folders]]
        kept = [place for place in places if place.is_symlink() or not place.is_dir()]
        return web.json_response([self._info(sandbox, place) for place in sorted(kept)])

    async def _upload(self, request: web.Request, sandbox: StandInSandbox) -> web.Response:
        refuse_unless(request.content_type == "multipart/form-data", "multipart form is empty")
        metadata: list[dict[str, Any]] = []
        contents: list[bytes] = []
        async for part in await request.multipart():
            assert not isinstance(part, aiohttp.MultipartReader)
            assert part is not None
            refuse_unless(part.filename is not None, "a part that is no file")
            content = bytes(await part.read())
            if part.name == "metadata":
                metadata.append(json.loads(content))
            else:
                refuse_unless(part.name == "file", "unknown part")
                contents.append(content)
        refuse_unless(len(metadata) == len(contents) > 0, "metadata and file count mismatch")
        for each, content in zip(metadata, contents, strict=True):
            refuse_unless(set(each) <= {"path", "mode", "owner", "group"}, "unknown metadata")
            place = self._place(sandbox, each["path"])
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(content)  # follows links, as execd does
            except OSError as exc:
                raise Refusal(500, "RUNTIME_ERROR", f"error opening destination file. {exc.strerror}".lower()) from None
            place.chmod(int(str(each["mode"]), 8))
        return web.Response()

    def _download(self, request: web.Request, sandbox: StandInSandbox) -> web.Response:
        place = self._place(sandbox, request.query["path"])
        try:
            content = place.read_bytes()  # follows links, as execd does
        except FileNotFoundError:
            raise Refusal(404, "FILE_NOT_FOUND", "file not found") from None
        except OSError as exc:
            raise Refusal(500, "RUNTIME_ERROR", f"error accessing file: {exc}") from None
        return web.Response(body=content, content_type="application/octet-stream")

    # ---- code --------------------------------------------------------------------------------------------------------------------------

    async def _create_context(self, request: web.Request, sandbox: StandInSandbox) -> web.Response:
        body = await body_of(request)
        refuse_unless(body == {"language": "python"}, "only python here, and no other field")
        (sandbox.folder / "data").mkdir(exist_ok=True)
        kernel = (await self._gateway_call("POST", "/api/kernels", {"name": "python3"}))["id"]
        context_id = uuid.uuid4().hex
        sandbox.kernels[context_id] = kernel
        return web.json_response({"id": context_id, "language": "python"})

    async def _run(self, request: web.Request, sandbox: StandInSandbox) -> web.StreamResponse:
        body = await body_of(request)
        refuse_unless(set(body) <= {"context", "code"} and bool(body.get("code")), "error parsing request")
        context = body.get("context", {})
        refuse_unless(set(context) <= {"id", "language"} and context.get("language") == "python", "context")
        kernel = sandbox.kernels.get(context.get("id", ""))
        if kernel is None:
            raise Refusal(500, "RUNTIME_ERROR", "error running codes context not found")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        await response.prepare(request)

        async def send(**event: Any) -> None:
            told = json.dumps(event).replace(str(sandbox.folder / "data"), DATA)
            await response.write(told.encode() + b"\n\n")

        await send(type="init", text=context["id"], timestamp=int(time.time() * 1000))
        if context["id"] in sandbox.busy:
            await send(code="RUNTIME_ERROR", message="error running codes session is busy")
            return response
        sandbox.busy.add(context["id"])
        pinging = asyncio.create_task(self._ping(send))
        try:
            async for event in self._events(kernel, body["code"].replace(DATA, str(sandbox.folder / "data"))):
                await send(**event, timestamp=int(time.time() * 1000))
        finally:
            pinging.cancel()
            sandbox.busy.discard(context["id"])
        return response

    async def _ping(self, send: Callable[..., Awaitable[None]]) -> None:
        while True:
            await send(type="ping", text="pong", timestamp=int(time.time() * 1000))
            await asyncio.sleep(3)

    async def _events(self, kernel: str, code: str) -> AsyncGenerator[dict[str, Any]]:
        """What execd makes of the messages of a kernel. It looks at five kinds of them, and at no message's parent."""
        assert self._client is not None
        started = time.monotonic()
        count, has_failed = 0, False
        # The first idle may be that of what was asked before the code, so the end is told too early then. The stream goes on until a
        # look, ten times in a second, finds that there was a reply, an error, or a result with a number.
        look_at: float | None = None
        async with self._client.ws_connect(f"/api/kernels/{kernel}/channels", max_msg_size=0) as messages:
            await messages.send_json(execute_request(code))
            while True:
                try:
                    received = await messages.receive(None if look_at is None else max(0.001, look_at - time.monotonic()))
                except TimeoutError:
                    if count > 0 or has_failed:
                        return
                    look_at = time.monotonic() + 0.1
                    continue
                if received.type is not aiohttp.WSMsgType.TEXT:
                    return
                message = json.loads(received.data)
                content = message["content"]
                match message["header"]["msg_type"]:
                    case "execute_reply":
                        count = content.get("execution_count", 0)  # none in one that was not run
                        has_failed = has_failed or bool(content.get("ename"))
                    case "execute_result":
                        count = content.get("execution_count", 0)
                        if count > 0:
                            yield {"type": "execution_count", "execution_count": count}
                        yield {"type": "result", "results": {"text" if k == "text/plain" else k: v for k, v in content["data"].items()}}
                    case "stream":
                        yield {"type": content["name"], "text": content["text"]}
                    case "error":
                        has_failed = True
                        yield {"type": "status", "text": "error"}
                        yield {"type": "error", "error": content}
                    case "status" if content["execution_state"] == "idle" and look_at is None:
                        look_at = time.monotonic()
                        yield {"type": "execution_complete", "execution_time": int((time.monotonic() - started) * 1000) or 1}
                    case _:
                        pass

    async def _gateway_call(self, method: str, path: str, body: Any = None) -> Any:
        assert self._client is not None
        async with self._client.request(method, path, json=body) as response:
            assert response.status < 300, await response.text()
            return await response.json() if response.content_type == "application/json" and response.status != 204 else None

    async def _delete_kernel(self, kernel: str) -> None:
        assert self._client is not None
        async with self._client.delete(f"/api/kernels/{kernel}"):
            pass


def execute_request(code: str) -> dict[str, Any]:
    header = {"msg_id": uuid.uuid4().hex, "username": "go-client", "session": uuid.uuid4().hex, "msg_type": "execute_request",
              "version": "5.3", "date": now().isoformat()}  # fmt: skip
    content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False, "stop_on_error": True}
    return {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}


async def body_of(request: web.Request) -> dict[str, Any]:
    """The JSON object of a request; it has to say that it is one."""
    refuse_unless(request.content_type == "application/json", "not JSON")
    try:
        body = json.loads(await request.read())
    except ValueError:
        raise Refusal(400, "INVALID_REQUEST", "error parsing request") from None
    refuse_unless(isinstance(body, dict), "no object")
    return body


def is_map_of_text(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(each, str) for each in value.values())


def is_list_of_text(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


@contextlib.contextmanager
def running_stand_in(folder: Path) -> Iterator[OpenSandboxStandIn]:
    """A stand-in with its gateway, in a thread of its own: for tests that are no coroutines. folder: for its files; has to exist."""
    gateway = KernelGateway(folder)
    stand_in = OpenSandboxStandIn(folder, gateway)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="opensandbox-stand-in")
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(stand_in.__aenter__(), loop).result(30)
        yield stand_in
        asyncio.run_coroutine_threadsafe(stand_in.__aexit__(None, None, None), loop).result(30)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        gateway.close()
