"""The files of a deployment, as far as they can be checked without Docker and a cluster: against the schemas of those who read them,
and against the program: its commands, its settings, its routes and how long it takes to end.
"""

import copy
import fnmatch
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import compose_spec
import kubernetes_validate
import pytest
import yaml

from mini_assistant.app import all_routes
from mini_assistant.command_line.parser import command_parser
from mini_assistant.settings import Settings, described_settings, load_settings

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy"
SERVER = DEPLOY / "kubernetes" / "server"
KUBERNETES_VERSION = "1.34"
USER = 10001
OURS = ("api", "worker", "migrate")
SECRET = re.compile(r"PASSWORD|SECRET|API_KEY|TOKEN|DATABASE_URL")
SMALL = Settings()

Object = dict[str, Any]


# ---- what is in the files


def dockerfile() -> list[tuple[str, str]]:
    """The instructions with their arguments, continued lines joined, comments left out."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines()) if word]


def last_stage() -> list[tuple[str, str]]:
    instructions = dockerfile()
    starts = [number for number, (word, _) in enumerate(instructions) if word == "FROM"]
    return instructions[starts[-1] :]


def copied_sources() -> list[str]:
    """What COPY takes from the folder of the Dockerfile."""
    copies = [rest.split() for word, rest in dockerfile() if word == "COPY" and not rest.startswith("--from")]
    return [source for words in copies for source in words[:-1]]


def is_sent_to_docker(path: str) -> bool:
    """Whether `.dockerignore` lets a file through: the last pattern that fits it, or a folder above it, decides."""
    is_sent = True
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!").rstrip("/").removeprefix("**/")
            parts = Path(path).parts
            above = ["/".join(parts[: count + 1]) for count in range(len(parts))] + list(parts if "**/" in line else ())
            if any(fnmatch.fnmatchcase(name, pattern) for name in above):
                is_sent = line.startswith("!")
    return is_sent


VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


def compose_text(given: Mapping[str, str] | None = None) -> str:
    """compose.yml with its variables put in: those given, the defaults of others, and for what has none a stand-in."""

    def value(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        return (given or {}).get(name) or (rest if kind == "-" else {"OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}.get(name, "stand-in"))

    return VARIABLE.sub(value, (ROOT / "compose.yml").read_text(encoding="utf-8"))


def services() -> dict[str, Object]:
    return yaml.safe_load(compose_text())["services"]


def kustomizations() -> list[Path]:
    return sorted(file.parent for file in DEPLOY.rglob("kustomization.yaml"))


def kustomization(folder: Path) -> Object:
    return yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))


def objects(folder: Path) -> list[Object]:
    """The objects of a kustomization's own files."""
    texts = [(folder / name).read_text(encoding="utf-8") for name in kustomization(folder)["resources"]]
    return [found for text in texts for found in yaml.safe_load_all(text) if found]


def of_kind(kind: str) -> dict[str, Object]:
    """The server's objects of a kind, by name."""
    return {found["metadata"]["name"]: found for found in objects(SERVER) if found["kind"] == kind}


def workloads() -> dict[str, Object]:
    """What makes pods of the server, by component."""
    return {found["metadata"]["labels"]["component"]: found for kind in ("Deployment", "Job") for found in of_kind(kind).values()}


def pod(component: str) -> Object:
    return workloads()[component]["spec"]["template"]["spec"]


def container(component: str) -> Object:
    (only,) = pod(component)["containers"]
    return only


def environment_file(path: Path) -> dict[str, str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def pod_environment(component: str) -> dict[str, str]:
    """The variables of a component's container, with the example's secrets."""
    common = {**environment_file(SERVER / "settings.env"), **environment_file(SERVER / "secret.env.example")}
    return {**common, **{item["name"]: item["value"] for item in container(component).get("env", [])}}


def image_environment() -> dict[str, str]:
    return dict(pair.split("=", 1) for word, rest in last_stage() if word == "ENV" for pair in rest.split())


def settings_of(environment: Mapping[str, str], arguments: list[str]) -> Settings:
    """The settings of a process of the image with these variables and arguments."""
    options = vars(command_parser().parse_args(arguments))
    flags = {name: options.get(name) for name in ("host", "port", "data_dir")}
    return load_settings(environment={**image_environment(), **environment}, flags=flags)


def port_of(arguments: list[str]) -> int:
    """Where a process with these arguments answers its probes."""
    options = command_parser().parse_args(arguments)
    return options.port if arguments[0] == "serve" else options.probe_port


def compose_settings(service: str) -> Settings:
    found = services()[service]
    return settings_of(found["environment"], found["command"])


def deployment_files() -> list[Path]:
    files = [ROOT / "Dockerfile", ROOT / "compose.yml", *(file for file in DEPLOY.rglob("*") if file.is_file())]
    return [file for file in files if "__pycache__" not in file.parts]


def seconds(text: str) -> int:
    match = re.fullmatch(r"(\d+)s", text)
    assert match, text
    return int(match[1])


def megabytes(text: str) -> int:
    match = re.fullmatch(r"(\d+)(Mi|Gi|m)", text)
    assert match, text
    return int(match[1]) * (1024 if match[2] == "Gi" else 1)


# ---- all files


@pytest.mark.parametrize("file", deployment_files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_variable_is_a_setting(file: Path) -> None:
    known = {f"MINI_ASSISTANT_{item.name.upper()}" for item in described_settings()} | {"MINI_ASSISTANT_CONFIG"}
    named = set(re.findall(r"MINI_ASSISTANT_[A-Z0-9_]*[A-Z]", file.read_text(encoding="utf-8")))

    assert named - known == set()


@pytest.mark.parametrize("file", deployment_files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_settings_in_comments_exist(file: Path) -> None:
    known = {item.name for item in described_settings()} | {"mini_assistant", "mini_assistant_queue_depth", "max_connections", "max_fails"}
    text = file.read_text(encoding="utf-8")
    comments = " ".join(re.findall(r"(?:^|\s)#(.*)$", text, re.MULTILINE)) if file.suffix != ".py" else ""
    named = set(re.findall(r"\b[a-z]+(?:_[a-z]+)*_(?:max|seconds|bytes|url)\b", comments))

    assert named - known == set()


@pytest.mark.parametrize("file", deployment_files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_registry_of_packages_and_no_machine_is_named(file: Path) -> None:
    text = file.read_text(encoding="utf-8")

    assert not re.search(r"pypi|pythonhosted|index-url|/(?:home|root|work|Users)/\w", text)


def test_commands_of_the_deployment_page_exist() -> None:
    pages = [DEPLOY / "README.md", ROOT / "docs" / "howto" / "scale-out.md"]
    blocks = [
        block for page in pages for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    ]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(blocks))
    commands = re.findall(r"(?<![\w=-])mini-assistant ((?:serve|worker|migrate|check|sandbox|models)\b[^#&|\n;]*)", joined)

    assert {"serve", "worker", "migrate", "check"} <= {command.split()[0] for command in commands}
    for command in commands:
        command_parser().parse_args(command.split())


def test_the_config_file_of_the_page_is_one(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "howto" / "scale-out.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "config.toml").write_text(text, encoding="utf-8")

    settings = load_settings(environment={}, config_file=tmp_path / "config.toml")

    assert settings.project_runs_max > 0
    assert [provider.runs_max for provider in settings.providers.values()] != [None]


# ---- the image


@pytest.mark.parametrize(
    ("file", "ignored"),
    [
        ("Dockerfile", []),
        ("deploy/kubernetes/Dockerfile", ["DL3013"]),  # its versions are for those who build it
    ],
)
def test_the_linter_of_dockerfiles_is_silent(file: str, ignored: list[str]) -> None:
    linter = Path(sys.executable).with_name("hadolint")
    if not linter.exists():
        pytest.skip("hadolint is not installed")
    options = [option for rule in ignored for option in ("--ignore", rule)]

    done = subprocess.run([linter, "--no-color", *options, ROOT / file], capture_output=True, text=True, timeout=60, check=False)

    assert (done.returncode, done.stdout) == (0, "")


def test_all_that_is_copied_into_the_image_is_there() -> None:
    assert {"pyproject.toml", "README.md", "LICENSE", "src", "requirements/runtime.lock"} <= set(copied_sources())
    for source in copied_sources():
        assert (ROOT / source).exists(), source
        assert is_sent_to_docker(source), f".dockerignore keeps {source} out"


def test_nothing_else_is_sent_to_docker() -> None:
    for path in ("data/files", ".env", ".git/config", ".venv/bin/python", "tests/conftest.py", "deploy/kubernetes/server/secret.env"):
        assert not is_sent_to_docker(path), path
    assert not is_sent_to_docker("src/mini_assistant/__pycache__/app.cpython-313.pyc")
    assert is_sent_to_docker("src/mini_assistant/sandboxes/requirements/process.lock")


def test_every_lock_that_is_installed_is_copied_before() -> None:
    installed: set[str] = set()
    copied: set[str] = set()
    for word, rest in dockerfile():
        if word == "COPY" and not rest.startswith("--from"):
            copied |= set(rest.split()[:-1])
        if word == "RUN":
            locks = set(re.findall(r"--requirement ([\w./-]+)", rest))
            assert locks <= copied, rest
            assert not locks or "--require-hashes" in rest
            installed |= locks

    assert installed == {f"requirements/{name}.lock" for name in ("build", "runtime", "scale-out", "builtin-embedder", "builtin-model")}


def test_the_image_holds_every_module_and_what_belongs_to_them(tmp_path: Path) -> None:
    """The package is built from the copied files alone, as in the image, and looked into."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    files = [file for file in (ROOT / "src").rglob("*") if file.is_file() and is_sent_to_docker(file.relative_to(ROOT).as_posix())]
    for file in files:
        place = tmp_path / file.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(file.read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "wheel"]

    subprocess.run(
        [*pip, "--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", "wheels", "."], cwd=tmp_path, check=True, timeout=120
    )

    (wheel,) = (tmp_path / "wheels").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    wanted = {
        file.relative_to(ROOT / "src").as_posix() for file in files if file.suffix in (".py", ".lock", ".typed", ".html", ".js", ".css")
    }
    assert "mini_assistant/db/migrations/env.py" in wanted
    assert "mini_assistant/sandboxes/requirements/process.lock" in wanted
    assert wanted - packed == set()


def test_the_image_runs_as_an_ordinary_user_and_without_a_shell() -> None:
    instructions = last_stage()
    by_word = dict(instructions)

    assert by_word["USER"] == f"{USER}:{USER}"
    assert [word for word, _ in instructions].index("USER") > max(n for n, (word, _) in enumerate(instructions) if word in ("RUN", "COPY"))
    for word in ("ENTRYPOINT", "CMD"):
        assert isinstance(json.loads(by_word[word]), list)
    assert isinstance(json.loads(by_word["HEALTHCHECK"].partition("CMD ")[2]), list)
    assert not re.search(r"\b(pip|apt-get|gcc|make|curl)\b", " ".join(rest for word, rest in instructions if word == "RUN"))


def test_images_are_named_with_a_version() -> None:
    bases = [rest.split()[0] for word, rest in dockerfile() if word == "FROM"]
    others = [found["image"] for found in services().values()]

    assert len(set(bases)) == 1, "the environment of the first stage names the interpreter of the last"
    for image in [*bases, *others]:
        assert re.search(r":[\w.-]*\d", image), image
        assert not image.endswith(":latest")


def test_the_image_holds_no_secret() -> None:
    for word, rest in dockerfile():
        if word in ("ENV", "ARG"):
            assert not SECRET.search(rest), rest


def test_the_image_serves_others_only_with_keys() -> None:
    by_word = dict(last_stage())
    arguments = json.loads(by_word["CMD"])
    settings = settings_of({"MINI_ASSISTANT_API_KEYS": "key"}, arguments)

    assert settings.host == "0.0.0.0"
    assert by_word["EXPOSE"] == str(settings.port)
    assert f":{settings.port}/health/live'" in by_word["HEALTHCHECK"]
    assert str(settings.data_dir) == by_word["VOLUME"] == by_word["WORKDIR"]


# ---- compose.yml


def accepted_by_compose(document: Object) -> None:
    """Raises ValueError when it is against the specification. `host-gateway`, a word of Docker's, is not known to this reader."""
    compose_spec.PyCompose.from_yaml(json.dumps(document).replace("host-gateway", "192.0.2.1")).to_spec()


def test_compose_keeps_to_the_specification() -> None:
    accepted_by_compose(yaml.safe_load(compose_text()))


@pytest.mark.parametrize(
    ("name", "value"), [("stop_grace_period", "soon"), ("depends_on", {"s3": {"condition": "sometimes"}}), ("helthcheck", {})]
)
def test_what_is_against_the_specification_is_refused(name: str, value: object) -> None:
    document = yaml.safe_load(compose_text())
    document["services"]["api"][name] = value

    with pytest.raises(ValueError):
        accepted_by_compose(document)


def test_every_service_has_an_image_and_is_watched() -> None:
    assert {"proxy", "api", "worker", "migrate", "postgres", "s3"} == set(services())
    for name, found in services().items():
        assert "image" in found or "build" in found
        if name == "migrate":
            assert found["healthcheck"] == {"disable": True}
        else:
            assert found["healthcheck"]["test"][0] == "CMD", name
            assert found["restart"] == "unless-stopped"


def test_services_wait_for_what_they_need_and_name_what_is_there() -> None:
    document = yaml.safe_load(compose_text())
    for found in document["services"].values():
        for other, how in found.get("depends_on", {}).items():
            wanted = "service_completed_successfully" if other == "migrate" else "service_healthy"
            assert how == {"condition": wanted}
            assert other in document["services"]
        assert set(found["networks"]) <= set(document["networks"])
        for volume in found.get("volumes", []):
            source = volume.split(":")[0]
            assert source.startswith("/") or source in document["volumes"] or (ROOT / source).is_file(), source
    for name in ("api", "worker"):
        assert {"migrate", "postgres", "s3"} == set(document["services"][name]["depends_on"])
        assert document["services"][name]["deploy"]["replicas"] == 2
    assert document["networks"]["inside"]["internal"] is True
    assert document["services"]["postgres"]["networks"] == document["services"]["s3"]["networks"] == ["inside"]
    assert [name for name, found in document["services"].items() if "ports" in found] == ["proxy"]


def test_no_secret_is_written_in_compose() -> None:
    """With other variables every secret is another one: nothing of them is in the file."""
    given = {name: f"given-{name}" for name in ("POSTGRES_PASSWORD", "S3_SECRET_ACCESS_KEY", "MINI_ASSISTANT_API_KEYS", "OPENAI_API_KEY")}
    checked = set()
    for found in yaml.safe_load(compose_text(given))["services"].values():
        for name, value in found.get("environment", {}).items():
            if SECRET.search(name) and not name.endswith("_ID"):
                assert any(secret in value for secret in given.values()), name
                checked.add(name)

    assert checked >= {"POSTGRES_PASSWORD", "MINI_ASSISTANT_DATABASE_URL", "MINI_ASSISTANT_API_KEYS", "AWS_SECRET_ACCESS_KEY"}


def test_nothing_starts_without_secrets() -> None:
    kinds = {match[1]: match[2] for match in VARIABLE.finditer((ROOT / "compose.yml").read_text(encoding="utf-8"))}

    for name in ("POSTGRES_PASSWORD", "S3_SECRET_ACCESS_KEY", "MINI_ASSISTANT_API_KEYS", "OPENAI_BASE_URL"):
        assert kinds[name] == "?", name


def test_every_secret_of_compose_is_on_its_page() -> None:
    page = (DEPLOY / "README.md").read_text(encoding="utf-8")

    for match in VARIABLE.finditer((ROOT / "compose.yml").read_text(encoding="utf-8")):
        assert f"{match[1]}=" in page, match[1]


@pytest.mark.parametrize("service", OURS)
def test_settings_of_compose_are_those_of_a_cluster(service: str) -> None:
    settings = compose_settings(service)

    assert settings.database_url == "postgresql://mini_assistant:stand-in@postgres:5432/mini_assistant"
    assert settings.blobs_url.startswith("s3://mini-assistant/")
    assert f"-bucket={settings.blobs_url.split('/')[2]}" in services()["s3"]["command"]
    assert settings.s3_access_key_id == services()["s3"]["environment"]["AWS_ACCESS_KEY_ID"]
    assert settings.s3_secret_access_key == services()["s3"]["environment"]["AWS_SECRET_ACCESS_KEY"]
    assert settings.workers == ("none" if service == "api" else "all")
    assert services()[service]["read_only"] is True
    assert services()[service]["cap_drop"] == ["ALL"]


@pytest.mark.parametrize("service", ["api", "worker"])
def test_compose_gives_time_to_drain(service: str) -> None:
    settings = compose_settings(service)

    assert seconds(services()[service]["stop_grace_period"]) > settings.drain_seconds + settings.shutdown_grace_seconds
    assert service == "api" or settings.drain_seconds > 0


@pytest.mark.parametrize("service", ["api", "worker"])
def test_probes_of_compose_ask_what_is_served(service: str) -> None:
    (path,) = re.findall(r"127\.0\.0\.1:8000(/[\w/]+)'", " ".join(services()[service]["healthcheck"]["test"]))

    assert path in served_paths()
    assert path == ("/health" if service == "api" else "/health/live")
    assert port_of(services()[service]["command"]) == 8000


def test_the_proxy_holds_nothing_back() -> None:
    lines = (DEPLOY / "nginx.conf").read_text(encoding="utf-8")
    found = dict(re.findall(r"^\s*(\w+) ([^;{]+);", lines, re.MULTILINE))

    assert lines.count("{") == lines.count("}")
    assert found["proxy_buffering"] == found["proxy_request_buffering"] == "off"
    assert found["proxy_http_version"] == "1.1"
    assert seconds(found["proxy_read_timeout"]) > 2 * SMALL.stream_ping_interval_seconds
    assert seconds(found["keepalive_timeout"]) < SMALL.idle_connection_seconds
    assert megabytes(found["client_max_body_size"]) * 1024 * 1024 > SMALL.file_bytes_max
    assert found["server"].startswith(f"api:{compose_settings('api').port} ")
    assert services()["proxy"]["ports"][0].endswith(f":{found['listen']}")
    assert f":{found['listen']}/health" in services()["proxy"]["healthcheck"]["test"][-1]


# ---- Kubernetes


def served_paths() -> set[str]:
    return {route.path for route in all_routes() if route.method == "GET" and route.public}


def test_both_probes_are_served() -> None:
    assert {"/health", "/health/live"} <= served_paths()


def schema_cases() -> Iterator[Any]:
    for folder in kustomizations():
        for found in objects(folder):
            yield pytest.param(found, id=f"{folder.name}-{found['kind']}-{found['metadata']['name']}")


@pytest.mark.parametrize("found", list(schema_cases()))
def test_objects_keep_to_the_schema(found: Object) -> None:
    assert kubernetes_validate.validate(found, KUBERNETES_VERSION, strict=True) == KUBERNETES_VERSION


def test_an_object_with_a_wrong_field_is_refused() -> None:
    found = copy.deepcopy(of_kind("Deployment")["mini-assistant-api"])
    found["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(found, KUBERNETES_VERSION, strict=True)


@pytest.mark.parametrize("folder", kustomizations(), ids=lambda path: path.name)
def test_all_files_of_a_kustomization_are_there(folder: Path) -> None:
    found = kustomization(folder)
    generated = [*found.get("configMapGenerator", []), *found.get("secretGenerator", [])]
    names = [name for item in generated for key in ("files", "envs") for name in item.get(key, [])]

    for name in [*found["resources"], *names]:
        assert (folder / name).is_file() or (folder / f"{name}.example").is_file(), name
    manifests = {file.name for file in folder.glob("*.yaml")} - {"kustomization.yaml"}
    assert manifests == set(found["resources"]), "a file that nobody applies"


def test_secrets_are_examples_and_git_leaves_the_real_ones_alone() -> None:
    values = environment_file(SERVER / "secret.env.example")

    assert all("REPLACE-ME" in value for value in values.values())
    assert not [name for name in environment_file(SERVER / "settings.env") if SECRET.search(name)]
    assert "secret.env" in (SERVER / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert not (SERVER / "secret.env").exists()
    assert of_kind("Secret") == {}


def test_names_in_manifests_are_those_of_what_is_generated() -> None:
    found = kustomization(SERVER)
    generated = {item["name"] for key in ("configMapGenerator", "secretGenerator") for item in found[key]}

    for component in OURS:
        used = {reference["name"] for source in container(component)["envFrom"] for reference in source.values()}
        assert used == generated


def test_all_run_the_same_image() -> None:
    (image,) = {container(component)["image"] for component in OURS}

    assert [item["name"] for item in kustomization(SERVER)["images"]] == [image]


@pytest.mark.parametrize("component", OURS)
def test_settings_of_pods_are_those_of_a_cluster(component: str) -> None:
    settings = settings_of(pod_environment(component), container(component)["args"])

    assert settings.database_url.startswith("postgresql://")
    assert settings.blobs_url.startswith("s3://")
    assert settings.workers == ("none" if component == "api" else "all")
    if component != "migrate":
        assert settings.host == "0.0.0.0", "probes come from the node"
        assert [port["containerPort"] for port in container(component)["ports"]] == [port_of(container(component)["args"])]


def test_the_variables_of_a_service_are_not_taken_for_settings() -> None:
    """A service `mini-assistant` gives every pod of its namespace MINI_ASSISTANT_PORT=tcp://..., unless links are off."""
    assert "mini-assistant" in of_kind("Service")
    for component in OURS:
        assert pod(component)["enableServiceLinks"] is False


@pytest.mark.parametrize("component", OURS)
def test_pods_have_no_rights(component: str) -> None:
    security = pod(component)["securityContext"]

    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] == security["runAsGroup"] == security["fsGroup"] == USER
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(component)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "privileged": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod(component)["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod(component))
    assert not [volume for volume in pod(component)["volumes"] if "hostPath" in volume]


@pytest.mark.parametrize("component", OURS)
def test_pods_have_limits_and_places_to_write(component: str) -> None:
    resources = container(component)["resources"]
    volumes = {volume["name"]: volume for volume in pod(component)["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container(component)["volumeMounts"]}

    assert {"cpu", "memory"} <= set(resources["limits"])
    assert {"cpu", "memory"} <= set(resources["requests"])
    assert set(mounts) == {"/data", "/tmp"}
    assert all(volume["emptyDir"]["sizeLimit"] for volume in mounts.values())
    assert image_environment()["MINI_ASSISTANT_DATA_DIR"] in mounts


def test_a_worker_has_the_memory_that_its_settings_allow() -> None:
    settings = settings_of(pod_environment("worker"), container("worker")["args"])
    parsers = settings.ingest_concurrency_max * settings.parse_memory_bytes_max
    limit = megabytes(container("worker")["resources"]["limits"]["memory"]) * 1024 * 1024

    assert limit > parsers + settings.index_cache_bytes_max


@pytest.mark.parametrize("component", ["api", "worker"])
def test_pods_have_time_to_drain(component: str) -> None:
    settings = settings_of(pod_environment(component), container(component)["args"])
    pause = container(component).get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)

    assert pod(component)["terminationGracePeriodSeconds"] > pause + settings.drain_seconds + settings.shutdown_grace_seconds
    assert pause > 0 if component == "api" else settings.drain_seconds > 0


@pytest.mark.parametrize("component", ["api", "worker"])
def test_probes_of_pods_ask_what_is_served(component: str) -> None:
    probes = {name: container(component)[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    ports = {port["name"] for port in container(component)["ports"]}

    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startup": "/health/live",
        "readiness": "/health",
        "liveness": "/health/live",
    }
    assert {probe["port"] for probe in probes.values()} <= ports
    assert {probe["path"] for probe in probes.values()} <= served_paths()


def matches(selector: Object, labels: Mapping[str, str]) -> bool:
    wanted = selector.get("matchLabels", {})
    expressions = selector.get("matchExpressions", [])
    assert all(item["operator"] == "In" for item in expressions)
    return wanted.items() <= labels.items() and all(labels.get(item["key"]) in item["values"] for item in expressions)


def components_of(selector: Object) -> set[str]:
    """The components whose pods a selector takes."""
    return {name for name, found in workloads().items() if matches(selector, found["spec"]["template"]["metadata"]["labels"])}


def test_selectors_take_the_pods_that_they_mean() -> None:
    for found in of_kind("Deployment").values():
        component = found["metadata"]["labels"]["component"]
        assert components_of(found["spec"]["selector"]) == {component}
        (spread,) = found["spec"]["template"]["spec"]["topologySpreadConstraints"]
        assert components_of(spread["labelSelector"]) == {component}
    (service,) = of_kind("Service").values()
    assert components_of({"matchLabels": service["spec"]["selector"]}) == {"api"}
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= {port["name"] for port in container("api")["ports"]}
    budgets = of_kind("PodDisruptionBudget")
    assert {name: components_of(found["spec"]["selector"]) for name, found in budgets.items()} == {
        "mini-assistant-api": {"api"},
        "mini-assistant-worker": {"worker"},
    }


def test_autoscalers_keep_two_and_say_what_they_look_at() -> None:
    scalers = of_kind("HorizontalPodAutoscaler")

    assert set(scalers) == set(of_kind("Deployment"))
    for name, found in scalers.items():
        assert found["spec"]["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}
        assert found["spec"]["minReplicas"] >= 2
        assert "replicas" not in of_kind("Deployment")[name]["spec"], "an apply would take back what the autoscaler decided"
    assert scalers["mini-assistant-api"]["spec"]["metrics"][0]["resource"]["name"] == "cpu"
    assert "cpu" in container("api")["resources"]["requests"]
    assert scalers["mini-assistant-worker"]["spec"]["metrics"][0]["external"]["metric"]["name"] == "mini_assistant_queue_depth"


def allowed(direction: str, component: str) -> set[int | str]:
    """The ports that the policies open to or from a component's pods."""
    found = [policy["spec"] for policy in of_kind("NetworkPolicy").values() if component in components_of(policy["spec"]["podSelector"])]
    return {port["port"] for spec in found for rule in spec.get(direction, []) for port in rule["ports"]}


def test_policies_deny_all_that_is_not_named() -> None:
    nothing = of_kind("NetworkPolicy")["mini-assistant-nothing"]["spec"]

    assert components_of(nothing["podSelector"]) == set(OURS)
    assert nothing["policyTypes"] == ["Ingress", "Egress"]
    assert not {"ingress", "egress"} & set(nothing)
    assert {component: allowed("ingress", component) for component in OURS} == {"api": {"http"}, "worker": set(), "migrate": set()}
    assert {component: allowed("egress", component) for component in OURS} == {
        "api": {53, 5432, 443},
        "worker": {53, 5432, 443, 8888},
        "migrate": {53, 5432},
    }


def test_every_rule_of_a_policy_names_both_ends() -> None:
    for name, policy in of_kind("NetworkPolicy").items():
        for direction, ends in (("ingress", "from"), ("egress", "to")):
            for rule in policy["spec"].get(direction, []):
                assert rule[ends], name
                assert rule["ports"], name
                assert direction.capitalize() in policy["spec"]["policyTypes"]


def test_the_metadata_service_of_clouds_cannot_be_reached() -> None:
    blocks = [
        end["ipBlock"]
        for policy in of_kind("NetworkPolicy").values()
        for rule in policy["spec"].get("egress", [])
        for end in rule["to"]
        if "ipBlock" in end
    ]

    assert blocks
    assert all("169.254.0.0/16" in block["except"] for block in blocks)


def test_gateways_of_the_sandbox_take_the_workers() -> None:
    (rules,) = [found["spec"] for found in objects(DEPLOY / "kubernetes") if found["kind"] == "NetworkPolicy"]
    (peer,) = rules["ingress"][0]["from"]

    assert "worker" in components_of(peer["podSelector"])
