"""Where a setting comes from, what it may be, and what is said when it is wrong."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from mini_assistant.errors import ConfigError
from mini_assistant.settings import Settings, described_settings, load_settings, secret_names, settings_page

PREFIX = "MINI_ASSISTANT_"


def config_file(folder: Path, text: str) -> Path:
    file = folder / "config.toml"
    file.write_text(text, encoding="utf-8")
    return file


def from_environment(**variables: str) -> Settings:
    return load_settings(environment={PREFIX + name.upper(): text for name, text in variables.items()})


def refusal(tmp_path: Path | None = None, file: str = "", **environment: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(environment=environment, config_file=None if tmp_path is None else config_file(tmp_path, file))
    return str(caught.value)


def test_without_anything_the_defaults_hold() -> None:
    assert load_settings(environment={}) == Settings()


def test_a_flag_wins_over_the_environment_over_the_file_over_the_default(tmp_path: Path) -> None:
    file = config_file(tmp_path, "port = 1111\nhost = '127.0.0.11'\nlog_level = 'debug'")
    environment = {"MINI_ASSISTANT_PORT": "2222", "MINI_ASSISTANT_HOST": "127.0.0.22"}

    settings = load_settings(flags={"port": 3333, "host": None}, environment=environment, config_file=file)

    assert settings.port == 3333
    assert settings.host == "127.0.0.22"
    assert settings.log_level == "debug"
    assert settings.run_turns_max == Settings().run_turns_max


def test_the_environment_can_name_the_config_file_and_a_flag_wins_over_it(tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text("port = 2222", encoding="utf-8")
    environment = {"MINI_ASSISTANT_CONFIG": str(config_file(tmp_path, "port = 1111"))}

    assert load_settings(environment=environment).port == 1111
    assert load_settings(environment=environment, config_file=tmp_path / "other.toml").port == 2222


def test_the_names_of_the_sdk_are_read_and_our_own_win() -> None:
    shared = {"OPENAI_BASE_URL": "http://a/v1", "OPENAI_API_KEY": "key-a", "HOME": "/"}
    own = {"MINI_ASSISTANT_OPENAI_BASE_URL": "http://b/v1", "MINI_ASSISTANT_OPENAI_API_KEY": "key-b"}

    assert load_settings(environment=shared).openai_base_url == "http://a/v1"
    assert load_settings(environment=shared).openai_api_key == "key-a"
    assert load_settings(environment={**own, **shared}).openai_base_url == "http://b/v1"
    assert load_settings(environment={**own, **shared}).openai_api_key == "key-b"


def test_empty_variables_of_the_sdk_count_as_not_set(tmp_path: Path) -> None:
    settings = load_settings(environment={"OPENAI_BASE_URL": ""}, config_file=config_file(tmp_path, "openai_base_url = 'http://a/v1'"))

    assert settings.openai_base_url == "http://a/v1"


@pytest.mark.parametrize("item", described_settings(), ids=lambda item: item.name)
def test_every_setting_can_be_given_as_text(item: dataclasses.Field[Any]) -> None:
    examples = {
        "host": "::1",
        "playground": "False",
        "log_level": "error",
        "log_format": "json",
        "traces_sample_ratio": "0.5",
        "openai_base_url": "http://127.0.0.1:1/v1",
        "data_dir": "/srv/data",
        "remote_images": "fetch",
        "parse_memory_bytes_max": "100000000",
        "sandbox_memory_bytes_max": "300000000",
        "sandbox_disk_bytes_max": "2000000",
    }
    typical = {bool: "true", int: "5000", float: "31.5", str: "text", tuple: "first, second,,"}
    text = examples.get(item.name, typical.get(type(item.default), ""))

    value = getattr(from_environment(**{item.name: text}), item.name)

    assert type(value) is type(item.default) or isinstance(value, Path)
    assert value != item.default
    assert str(value) == text or value in (True, ("first", "second"))


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("port = 80", "port", 80),
        ("lease_seconds = 3", "lease_seconds", 3.0),
        ("lease_seconds = 2.5", "lease_seconds", 2.5),
        ("request_log = true", "request_log", True),
        ("data_dir = 'x'", "data_dir", Path("x")),
        ("cors_origins = ['a', ' b ', '']", "cors_origins", ("a", "b")),
        ("cors_origins = 'a,b'", "cors_origins", ("a", "b")),
        ("cors_origins = []", "cors_origins", ()),
    ],
)
def test_the_types_of_the_config_file(tmp_path: Path, line: str, name: str, value: object) -> None:
    found = getattr(load_settings(environment={}, config_file=config_file(tmp_path, line)), name)

    assert found == value
    assert type(found) is type(value) or isinstance(found, Path)


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("TRUE", True), ("1", True), ("yes", True), ("false", False), ("False", False), ("0", False), ("no", False)],
)
def test_spellings_of_true_and_false(text: str, value: bool) -> None:
    assert from_environment(request_log=text).request_log is value


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("port = 'x'", "'port' must be a whole number, but is 'x'."),
        ("port = 80.5", "'port' must be a whole number."),
        ("port = true", "'port' must be a whole number."),
        ("port = -1", "'port' must be at least 0, but is -1."),
        ("port = 65536", "'port' must be at most 65535, but is 65536."),
        ("port = []", "'port' must be a whole number."),
        ("lease_seconds = 'soon'", "'lease_seconds' must be a number, but is 'soon'."),
        ("lease_seconds = 0.4", "'lease_seconds' must be at least 0.5, but is 0.4."),
        ("lease_seconds = nan", "'lease_seconds' must be a number, but is 'nan'."),
        ("lease_seconds = inf", "'lease_seconds' must be a number, but is 'inf'."),
        ("lease_seconds = {}", "'lease_seconds' must be a number."),
        ("request_log = 'maybe'", "'request_log' must be true or false, but is 'maybe'."),
        ("request_log = 2", "'request_log' must be true or false, but is '2'."),
        ("host = 5", "'host' must be a text."),
        ("data_dir = 5", "'data_dir' must be a path."),
        ("log_level = 'loud'", "'log_level' must be debug, info, warning or error, but is 'loud'."),
        ("cors_origins = 5", "'cors_origins' must be texts separated by commas, or an array of texts in the config file."),
        ("cors_origins = [1]", "'cors_origins' must be texts separated by commas, or an array of texts in the config file."),
        ("prot = 80", "'prot' is not a setting. See docs/settings.md for the names."),
        ("openai_base_url = 'localhost:11434'", "'openai_base_url' must begin with http:// or https://, as in http://127.0.0.1:11434/v1."),
        ("provider_keys = {a = 'b'}", "'provider_keys' is not a setting. See docs/settings.md for the names."),
    ],
)
def test_wrong_values_are_refused_by_name(tmp_path: Path, line: str, message: str) -> None:
    assert refusal(tmp_path, line).startswith(message)


@pytest.mark.parametrize(
    "item", [item for item in described_settings() if item.metadata["minimum"] is not None], ids=lambda item: item.name
)
def test_every_minimum_holds(item: dataclasses.Field[Any]) -> None:
    minimum = item.metadata["minimum"]
    below = minimum - 1 if isinstance(item.default, int) else minimum - 0.001

    assert getattr(from_environment(**{item.name: str(minimum)}), item.name) == minimum
    assert f"'{item.name}' must be at least {minimum}, but is {below}." in refusal(**{PREFIX + item.name.upper(): str(below)})


def test_every_number_has_a_minimum() -> None:
    without = [item.name for item in described_settings() if type(item.default) in (int, float) and item.metadata["minimum"] is None]

    assert without == []


@pytest.mark.parametrize("variable", ["MINI_ASSISTANT_PROT", "MINI_ASSISTANT_PROVIDERS", "MINI_ASSISTANT_", "MINI_ASSISTANT_PROVIDER_KEYS"])
def test_unknown_variables_are_refused(variable: str) -> None:
    assert refusal(**{variable: "x"}) == f"{variable} is not a setting. See docs/settings.md for the names."


def test_a_config_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.toml cannot be read: No such file or directory"):
        load_settings(environment={}, config_file=tmp_path / "missing.toml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_settings(environment={}, config_file=tmp_path)


@pytest.mark.parametrize("content", [b"port = ", b"port = 1\nport = 2", b"\xff\xfe", b"[[["])
def test_a_config_file_that_is_no_toml(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.toml").write_bytes(content)

    with pytest.raises(ConfigError, match="is not valid TOML"):
        load_settings(environment={}, config_file=tmp_path / "config.toml")


FULL = """
[providers.near]
base_url = "http://127.0.0.1:11434/v1"
api_key_env = "NEAR_KEY"
retries_max = 1

[models.small]
provider = "near"
upstream_name = "small:1b"
context_window_tokens = 8192

[models.tiny]
provider = "builtin"

[aliases]
"gpt-4o" = "small"
"*" = "tiny"
"""


def test_providers_models_and_aliases(tmp_path: Path) -> None:
    settings = load_settings(environment={"NEAR_KEY": "secret-key"}, config_file=config_file(tmp_path, FULL))

    assert settings.providers["near"].base_url == "http://127.0.0.1:11434/v1"
    assert settings.providers["near"].retries_max == 1
    assert settings.models["small"].upstream_name == "small:1b"
    assert settings.models["small"].context_window_tokens == 8192
    assert settings.aliases == {"gpt-4o": "small", "*": "tiny"}
    assert settings.provider_keys == {"near": "secret-key"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[providers.a]\nbase_url = 'ftp://x'", "[providers.a] base_url must begin with http:// or https://."),
        ("[providers.a]", "The table [providers] of the config file is wrong: Object missing required field `base_url`"),
        (
            "[providers.a]\nbase_url = 'http://x'\nkey = 'k'",
            "The table [providers] of the config file is wrong: Object contains unknown field",
        ),
        ("[providers.a]\nbase_url = 5", "The table [providers] of the config file is wrong: Expected `str`"),
        ("providers = 5", "The table [providers] of the config file is wrong: Expected `object`"),
        ("[providers.a]\nbase_url = 'http://x'\napi_key_env = 'K'", "[providers.a] takes its key from the variable K, which is not set."),
        ("[models.m]\nprovider = 'x'", "[models.\"m\"] names the provider 'x'; known are: builtin."),
        ("[models.m]", "[models.\"m\"] names the provider ''; known are: builtin."),
        ("[models.m]\nprovider = 'builtin'\nx = 1", "The table [models] of the config file is wrong: Object contains unknown field `x`"),
        ("[aliases]\na = 'b'", '[aliases] "a" points to \'b\', which has no [models."b"] table.'),
        ("remote_images = 'always'", "'remote_images' must be pass, fetch or refuse, but is 'always'."),
        ("[models.m]\nprovider = 'builtin'\nfallbacks = ['n']", '[models."m"] falls back to \'n\', which has no [models."n"] table.'),
        ("[providers.a]\nbase_url = 'http://x'\nproxy = 'x:1'", "[providers.a] proxy must begin with http:// or https://."),
        ("[aliases]\na = 5", "The table [aliases] of the config file is wrong: Expected `str`"),
    ],
)
def test_wrong_tables_are_refused(tmp_path: Path, text: str, message: str) -> None:
    assert refusal(tmp_path, text).startswith(message)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_needs_no_keys(host: str) -> None:
    assert from_environment(host=host).is_loopback


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com", "localhost.example.com"])
def test_other_addresses_are_no_loopback(host: str) -> None:
    assert not from_environment(host=host).is_loopback


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    environment = {"OPENAI_API_KEY": "secret-one", "MINI_ASSISTANT_API_KEYS": "secret-two", "NEAR_KEY": "secret-three"}
    settings = load_settings(environment=environment, config_file=config_file(tmp_path, FULL))

    assert "secret" not in repr(settings)
    assert "31337" not in refusal(tmp_path, "openai_api_key = 31337")
    assert "31337" not in refusal(tmp_path, "api_keys = [31337]")


@pytest.mark.parametrize("name", secret_names())
def test_a_config_file_may_not_hold_a_secret(tmp_path: Path, name: str) -> None:
    message = refusal(tmp_path, f"{name} = 'secret-31337'")

    assert message.startswith(f"'{name}' is a secret, which a config file may not hold: set {PREFIX}{name.upper()}, or ")
    assert "31337" not in message


@pytest.mark.parametrize("name", secret_names())
def test_a_secret_may_lie_in_a_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text(" secret-31337\n", encoding="utf-8")
    variable = f"{PREFIX}{name.upper()}_FILE"
    found = getattr(load_settings(environment={variable: str(tmp_path / "secret")}), name)

    assert found in ("secret-31337", ("secret-31337",))


def test_secrets_are_named_once_and_their_files_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"\xff31337")
    both = {"MINI_ASSISTANT_SANDBOX_TOKEN": "31337", "MINI_ASSISTANT_SANDBOX_TOKEN_FILE": "x"}
    missing = {"MINI_ASSISTANT_SANDBOX_TOKEN_FILE": str(tmp_path / "missing")}

    assert refusal(**both) == "MINI_ASSISTANT_SANDBOX_TOKEN and MINI_ASSISTANT_SANDBOX_TOKEN_FILE are both set; which of them counts?"
    assert refusal(**missing) == "The file that MINI_ASSISTANT_SANDBOX_TOKEN_FILE names cannot be read: No such file or directory."
    assert "it is not UTF-8" in refusal(MINI_ASSISTANT_SANDBOX_TOKEN_FILE=str(tmp_path / "secret"))
    assert refusal(MINI_ASSISTANT_PORT_FILE="x") == "MINI_ASSISTANT_PORT_FILE is not a setting. See docs/settings.md for the names."


def test_the_key_of_a_provider_may_lie_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret-key\n", encoding="utf-8")
    settings = load_settings(environment={"NEAR_KEY_FILE": str(tmp_path / "key")}, config_file=config_file(tmp_path, FULL))

    assert settings.provider_keys == {"near": "secret-key"}
    assert "which is not set" in refusal(tmp_path, FULL, NEAR_KEY_FILE="")


def test_every_secret_is_known_to_be_one() -> None:
    words = ("key", "token", "secret", "password", "database_url")
    looks_secret = {item.name for item in described_settings() if any(word in item.name for word in words)}
    no_secrets = {name for name in looks_secret if name.endswith(("_max", "_tokens", "_seconds")) or name == "serve_without_keys"}

    assert looks_secret - no_secrets - set(secret_names()) == set()


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().port = 1  # type: ignore[misc]


def test_the_page_has_a_row_for_every_setting() -> None:
    page = settings_page()

    for item in described_settings():
        assert f"| `{item.name}` | `{PREFIX}{item.name.upper()}` |" in page
    assert "| empty |" in page
    assert "()" not in page
