"""The JSON schema: current, and as strict as the loader."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from engine.config.decode import fields_of
from engine.config.options.route import FileOptions
from engine.config.schema import json_schema
from shared.config import StackConfig, UdpConfig
from tests.engine.config.conftest import BASE
from tests.engine.config.test_legacy import ONE_FOURTEEN
from tests.engine.config.test_route import MODERN

FILE = Path(__file__).parents[3] / "docs" / "engine.schema.json"


def test_the_file_in_docs_is_current() -> None:
    assert FILE.read_text() == json_schema(), "make it again: engine check --schema > docs/engine.schema.json"


def test_every_key_that_is_taken_has_a_place_and_none_else() -> None:
    schema = json.loads(json_schema())
    root = schema["$defs"]["FileOptions"]
    assert set(root["properties"]) == {
        "log", "dns", "inbounds", "outbounds", "route", "experimental", "engine", "$schema", "ntp", "http_clients",
    }  # fmt: skip
    assert root["additionalProperties"] is False
    assert set(root["properties"]) < set(fields_of(FileOptions))


def test_every_reference_leads_somewhere() -> None:
    schema = json.loads(json_schema())

    def references(part: Any) -> list[str]:
        if isinstance(part, dict):
            own = [part["$ref"]] if "$ref" in part else []
            return own + [found for value in part.values() for found in references(value)]
        return [found for value in part for found in references(value)] if isinstance(part, list) else []

    assert {reference.removeprefix("#/$defs/") for reference in references(schema)} == set(schema["$defs"])


def test_docstrings_are_the_texts() -> None:
    definitions = json.loads(json_schema())["$defs"]
    assert definitions["RouteRuleOptions"]["properties"]["domain"]["description"] == "The whole name."
    assert definitions["SocksOptions"]["properties"]["routing_mark"]["description"].startswith("Mark of the sockets")
    assert definitions["TunOptions"]["properties"]["stack"]["deprecated"] is True


def test_limits_of_the_workers_can_all_be_set() -> None:
    definitions = json.loads(json_schema())["$defs"]
    assert set(definitions["StackOptions"]["properties"]) == set(StackConfig.__struct_fields__) - {"mtu", "offload"}
    assert set(definitions["UdpOptions"]["properties"]) == set(UdpConfig.__struct_fields__) - {"idle_timeout"}


def test_every_key_that_does_something_is_in_the_documentation() -> None:
    text = (FILE.parent / "configuration.md").read_text()
    definitions = json.loads(json_schema())["$defs"]
    silent = set(definitions["ListenerOptions"]["properties"]) | {"$schema"}
    keys = {
        key
        for definition in definitions.values()
        for key, schema in definition["properties"].items()
        if not schema.get("deprecated")
    }
    assert {key for key in keys - silent if key not in text} == set()


VALID: list[Any] = [{}, ONE_FOURTEEN, {**BASE, **MODERN}, {"engine": {"workers": 3, "metrics": "off"}, "$schema": "x"}]
INVALID: list[Any] = [
    [],
    {"outbound": []},
    {"inbounds": [{"type": "tun", "mtu": "1500", "address": "10.0.0.1/30"}]},
    {"inbounds": [{"type": "tun"}]},
    {"outbounds": [{"type": "socks", "tag": "a"}]},
    {"outbounds": [{"tag": "a"}]},
    {"outbounds": [{"type": "vmess", "tag": "a"}]},
    {"route": {"rules": [{"port": "53", "outbound": "a"}]}},
    {"dns": {"servers": [{"type": "udp", "tag": "a", "server": "1.1.1.1", "detuor": "b"}]}},
]


def validator() -> jsonschema.Draft202012Validator:
    schema = json.loads(json_schema())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("config", VALID, ids=lambda config: json.dumps(config)[:40])
def test_editors_take_what_the_loader_takes(config: Any) -> None:
    validator().validate(config)


@pytest.mark.parametrize("config", INVALID, ids=json.dumps)
def test_editors_refuse_what_the_loader_refuses(config: Any) -> None:
    with pytest.raises(jsonschema.ValidationError):
        validator().validate(config)
