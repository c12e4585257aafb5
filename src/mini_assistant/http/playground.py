"""`GET /playground/`: a page in which the API can be tried. Its files are in the package, are read once, and are the same for everybody.

Nobody needs a key for them: they hold nothing of anyone, and the page itself brings one along with each call of the API.
"""

import hashlib
from importlib import resources

from mini_assistant.errors import NotFound
from mini_assistant.http.routing import Page, Request, Route

_KINDS = {
    "html": b"text/html; charset=utf-8",
    "css": b"text/css; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
    "svg": b"image/svg+xml",
}
# Whatever a model, a file or a person has written, the browser runs nothing but our files, sends nothing elsewhere, and takes no text
# for markup (trusted types). Images of the API are fetched with the key and shown as blobs.
_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; font-src 'none'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_GUARDS = [
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
_INDEX = "index.html"


def playground_routes() -> list[Route]:
    """The routes of the playground's files. They are no part of the API, and so not described in `/openapi.json`."""
    pages = _pages()
    # Relative, for a proxy may show the server under a path of its own.
    to_folder = Page(308, [*_GUARDS, (b"location", b"playground/"), (b"cache-control", b"no-cache")], b"")

    async def redirect(_request: Request[None, None]) -> Page:
        return to_folder

    async def get_index(_request: Request[None, None]) -> Page:
        return pages[_INDEX]

    async def get_file(request: Request[None, None]) -> Page:
        name = request.path["file"]
        if name not in pages:
            raise NotFound(f"The playground has no file '{name[:100]}'.")
        return pages[name]

    calls = {"/playground": redirect, "/playground/": get_index, "/playground/{file}": get_file}
    names = {"/playground": "redirectToPlayground", "/playground/": "getPlayground", "/playground/{file}": "getPlaygroundFile"}
    return [
        Route(method="GET", path=path, name=names[path], summary="The playground", call=call, answer=bytes, public=True)
        for path, call in calls.items()
    ]


def _pages() -> dict[str, Page]:
    """The files by their names. What is in the folder beside them (what an editor or the interpreter leaves there) is not served."""
    pages: dict[str, Page] = {}
    for file in (resources.files("mini_assistant") / "playground").iterdir():
        kind = _KINDS.get(file.name.rpartition(".")[2])
        if kind is not None and file.is_file():
            content = file.read_bytes()
            etag = b'"%s"' % hashlib.sha256(content).hexdigest()[:32].encode()
            headers = [*_GUARDS, (b"content-type", kind), (b"cache-control", b"no-cache"), (b"etag", etag)]
            pages[file.name] = Page(200, headers, content, etag)
    return pages
