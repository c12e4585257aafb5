"""What the probe of a model has found, as a table, as JSON, and as the lines of the config file that say the same."""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from mini_assistant.models.base import Capabilities
from mini_assistant.settings import ModelSettings

Outcome = Literal["yes", "no", "ignored", "unknown"]
"""no: refused. ignored: accepted, and without effect. unknown: the test itself failed, or could not tell."""


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """The outcome of one test. detail: why, in few words. value: a number that was found, in tokens, or how reasoning is marked."""

    name: str
    outcome: Outcome
    detail: str = ""
    value: int | Literal["opened"] | None = None


class ProbeReport(msgspec.Struct, frozen=True):
    """Everything about one model.

    address: of its provider, without what may be secret. requests: sent to the model. tokens: as far as the endpoint counted them.
    changes: fields of `Capabilities` that differ from the defaults. toml: lines to paste into the config file.
    """

    model: str
    provider: str
    upstream_name: str
    address: str
    findings: tuple[Finding, ...]
    changes: dict[str, Any]
    toml: str
    requests: int = 0
    tokens: int = 0

    def json(self) -> str:
        """The report as one JSON object."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2).decode()

    def text(self) -> str:
        """The report for a person: a table, and the TOML below it."""
        name = self.model if self.upstream_name == self.model else f"{self.model} ({self.upstream_name})"
        place = f"{self.provider}, {self.address}" if self.address else self.provider
        cells = [(finding.name, _cell(finding), finding.detail) for finding in self.findings]
        width, cell_width = max(len(cell[0]) for cell in cells), max(len(cell[1]) for cell in cells)
        lines = [f"{'model':{width}}  {name}", f"{'provider':{width}}  {place}", ""]
        lines += [f"{test:{width}}  {cell:{cell_width}}  {detail}".rstrip() for test, cell, detail in cells]
        if not self.requests:
            lines += ["", "The built-in model is not asked: what it can do is known."]
        else:
            tokens = f" and {self.tokens} tokens" if self.tokens else ""
            lines += ["", f"This took {self.requests} requests{tokens}. For the config file:"]
        return "\n".join([*(printable(line) for line in lines), "", self.toml])


def _cell(finding: Finding) -> str:
    return f"{finding.value} tokens" if isinstance(finding.value, int) else finding.outcome


def printable(text: str) -> str:
    """The text without characters that would do something to a terminal."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def found_capabilities(findings: Mapping[str, Finding], configured: Capabilities) -> Capabilities:
    """What the model can do: as it was found, and as it is configured where a test could not tell."""
    outcomes: dict[str, Outcome] = {name: finding.outcome for name, finding in findings.items()}
    changes: dict[str, Any] = {}
    for field, test, is_told_by in _TOLD_BY:
        outcome = outcomes.get(test, "unknown")
        if outcome == "yes":
            changes[field] = True
        elif outcome in is_told_by and getattr(configured, field) is True:
            changes[field] = False
    if outcomes.get("tools") == "ignored" and outcomes.get("tool_choice_required") == "yes":
        changes.pop("tools", None)  # it can call tools, and only preferred not to
    role, limit = _system_role_or_none(outcomes), _limit_parameter_or_none(outcomes)
    changes |= {"system_role": role} if role else {}
    changes |= {"max_tokens_parameter": limit} if limit else {}
    for field, test in (("context_window_tokens", "context_window"), ("completion_tokens_max", "longest_answer")):
        if getattr(configured, field) is None and test in findings and isinstance(findings[test].value, int):
            changes[field] = findings[test].value
    if "reasoning_text" in findings and findings["reasoning_text"].value == "opened":
        changes["think_tags"] = "opened"
    return msgspec.structs.replace(configured, **changes)


# A field of the capabilities, the test that tells it, and the outcomes by which the model cannot. A field that is merely overlooked may be
# sent; tools, forms and images that are overlooked must not be relied on.
_TOLD_BY: tuple[tuple[str, str, tuple[Outcome, ...]], ...] = (
    ("tools", "tools", ("no", "ignored")),
    ("tool_choice", "tool_choice_required", ("no", "ignored")),
    ("parallel_tool_calls", "parallel_tool_calls", ("no",)),
    ("images", "images", ("no", "ignored")),
    ("json_schema", "json_schema", ("no", "ignored")),
    ("json_object", "json_object", ("no", "ignored")),
    ("reasoning_effort", "reasoning_effort", ("no",)),
    ("temperature", "temperature", ("no",)),
    ("stream_usage", "stream_usage", ("no",)),
)


def _system_role_or_none(outcomes: Mapping[str, Outcome]) -> str | None:
    for role in ("system", "developer", "user"):
        if outcomes.get(f"{role}_role") == "yes":
            return role
    refused = [role for role in ("system", "developer") if outcomes.get(f"{role}_role") == "no"]
    return "user" if len(refused) == 2 else None


def _limit_parameter_or_none(outcomes: Mapping[str, Outcome]) -> str | None:
    names = ("max_completion_tokens", "max_tokens")
    kept = next((name for name in names if outcomes.get(name) == "yes"), None)
    refused = [name for name in names if outcomes.get(name) == "no"]
    return kept or (names[1] if refused == [names[0]] else names[0] if refused == [names[1]] else None)


def changes_of(capabilities: Capabilities) -> dict[str, Any]:
    """The fields that differ from the defaults."""
    default = Capabilities()
    names = [field.name for field in msgspec.structs.fields(Capabilities)]
    return {name: getattr(capabilities, name) for name in names if getattr(capabilities, name) != getattr(default, name)}


def model_toml(name: str, model: ModelSettings) -> str:
    """The table `[models."NAME"]` with what differs from the defaults."""
    fields: dict[str, Any] = {"provider": model.provider}
    if model.upstream_name not in (None, name):
        fields["upstream_name"] = model.upstream_name
    fields |= changes_of(model)
    if model.fallbacks:
        fields["fallbacks"] = model.fallbacks
    return _toml_table(f"models.{_toml_value(name)}", fields)


def provider_toml(name: str, base_url: str, key_variable: str | None, *, is_shortened: bool = False) -> str:
    """The table `[providers.NAME]`. key_variable: the variable that holds the key; None without one.

    is_shortened: whether the address had a user, a password or a query, which are not shown.
    """
    fields = {"base_url": base_url} if key_variable is None else {"base_url": base_url, "api_key_env": key_variable}
    table = _toml_table(f"providers.{_toml_value(name)}", fields)
    return f"# The user, password or query of this address may be secret and is left out: add it.\n{table}" if is_shortened else table


def _toml_table(name: str, fields: Mapping[str, Any]) -> str:
    return "\n".join([f"[{name}]", *(f"{key} = {_toml_value(value)}" for key, value in fields.items())])


def _toml_value(value: Any) -> str:
    # The literals of JSON are those of TOML, but for one character that JSON need not escape.
    return msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")
