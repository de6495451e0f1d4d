"""The sections route, log and experimental, and the whole file."""

from typing import Annotated, Literal

import msgspec

from engine.config.decode import Options
from engine.config.fields import Duration, Fwmark, Hidden, Ignored, Listable, Required, Unsupported, Variants
from engine.config.names import InterfaceName
from engine.config.options.dns import DnsOptions
from engine.config.options.engine import EngineOptions
from engine.config.options.inbound import INBOUND, ListenerOptions, TunOptions
from engine.config.options.outbound import OUTBOUND, OutboundOptions, Resolver
from engine.config.options.rule import (
    HEADLESS_DNS_RULE,
    ROUTE_RULE,
    DnsMatchOptions,
    LogicalDnsOptions,
    LogicalRouteRuleOptions,
    RouteRuleOptions,
)

__all__ = [
    "CacheFileOptions",
    "ClashApiOptions",
    "FileOptions",
    "InlineRuleSetOptions",
    "LocalRuleSetOptions",
    "LogOptions",
    "RemoteRuleSetOptions",
    "RouteOptions",
    "RuleSetFileOptions",
    "RuleSetOptions",
]


class LogOptions(Options, frozen=True, kw_only=True):
    """What is logged."""

    disabled: bool = False
    level: Literal["trace", "debug", "info", "warn", "warning", "error", "fatal", "panic"] = "info"
    """`trace` is as `debug`; `fatal` and `panic` are as `error`."""
    output: str | None = None
    """A file instead of standard error."""
    timestamp: bool = True


class RuleSetOptions(Options, frozen=True, kw_only=True):
    """What all rule-sets have."""

    type: Annotated[str, Hidden()] = "inline"
    tag: Annotated[str, Required("write a name of your own, which rules use")] = ""
    """Name that rules use."""


class InlineRuleSetOptions(RuleSetOptions, frozen=True, kw_only=True):
    """Rules that stand here."""

    rules: tuple[Annotated[DnsMatchOptions | LogicalDnsOptions, HEADLESS_DNS_RULE], ...] = ()


class LocalRuleSetOptions(RuleSetOptions, frozen=True, kw_only=True):
    """Rules of a file."""

    format: Literal["source", "binary"] | None = None
    """Source: JSON; binary: .srs. Nothing: told by the name of the file."""
    path: Annotated[str, Required("write the path of the file")] = ""
    """Relative to the configuration file."""


class RemoteRuleSetOptions(RuleSetOptions, frozen=True, kw_only=True):
    """Rules of a file that was fetched before: the engine itself fetches nothing."""

    format: Literal["source", "binary"] | None = None
    url: Annotated[str, Required("write the address of the file")] = ""
    update_interval: Duration = 86400.0
    """Not used: the engine fetches nothing by itself."""
    download_detour: str | None = None
    """Not used."""

    http_client: Annotated[object, Ignored("http_client has no effect: the engine fetches nothing by itself")] = None


RULE_SET = Variants(
    "type",
    {"inline": InlineRuleSetOptions, "local": LocalRuleSetOptions, "remote": RemoteRuleSetOptions},
    default="inline",
    what="a rule-set",
)


class RuleSetFileOptions(Options, frozen=True, kw_only=True):
    """A rule-set in source form: a file of its own."""

    version: Literal[1, 2, 3, 4] | None = None
    rules: tuple[Annotated[DnsMatchOptions | LogicalDnsOptions, HEADLESS_DNS_RULE], ...] = ()


_NETWORKS = "has no effect: only apps for phones choose networks"


class RouteOptions(Options, frozen=True, kw_only=True):
    """Which flow takes which outbound."""

    rules: tuple[Annotated[RouteRuleOptions | LogicalRouteRuleOptions, ROUTE_RULE], ...] = ()
    """The first one with a final action decides."""
    rule_set: tuple[Annotated[InlineRuleSetOptions | LocalRuleSetOptions | RemoteRuleSetOptions, RULE_SET], ...] = ()
    final: str | None = None
    """Tag of the outbound of flows that no rule takes; nothing: the first outbound."""
    auto_detect_interface: bool = False
    """Connections of the engine leave by the default interface. They do so in any case."""
    default_interface: InterfaceName | None = None
    """Interface of all outbounds that name none."""
    default_mark: Fwmark | None = None
    """Mark of all outbounds that name none."""
    default_domain_resolver: Resolver = None
    """DNS server that finds the servers of outbounds and the names of direct flows."""
    find_process: Annotated[bool, Hidden()] = False
    """Programs are looked up when a rule asks, and only then."""

    override_android_vpn: Annotated[object, Ignored("override_android_vpn has no effect: only Android has it")] = None
    default_network_strategy: Annotated[object, Ignored(f"default_network_strategy {_NETWORKS}")] = None
    default_network_type: Annotated[object, Ignored(f"default_network_type {_NETWORKS}")] = None
    default_fallback_network_type: Annotated[object, Ignored(f"default_fallback_network_type {_NETWORKS}")] = None
    default_fallback_delay: Annotated[object, Ignored(f"default_fallback_delay {_NETWORKS}")] = None
    default_http_client: Annotated[
        object, Ignored("default_http_client has no effect: the engine fetches nothing by itself")
    ] = None
    find_neighbor: Annotated[object, Unsupported("find_neighbor is not supported: delete the key")] = None
    dhcp_lease_files: Annotated[object, Unsupported("dhcp_lease_files is not supported: delete the key")] = None
    geoip: Annotated[object, Ignored("geoip has no effect: sing-box 1.12 removed the database; use rule_set")] = None
    geosite: Annotated[object, Ignored("geosite has no effect: sing-box 1.12 removed the database; use rule_set")] = (
        None
    )


class CacheFileOptions(Options, frozen=True, kw_only=True):
    """What is kept across a restart: where it is enabled, the mode and what was chosen in selectors."""

    enabled: bool = False
    path: str | None = None
    """File; nothing: in the run directory."""
    cache_id: str | None = None
    store_fakeip: bool = False
    """Fake addresses keep their names."""

    store_rdrc: Annotated[object, Ignored("store_rdrc has no effect: rules about DNS answers do not exist here")] = None
    rdrc_timeout: Annotated[object, Ignored("rdrc_timeout has no effect")] = None
    store_dns: Annotated[object, Ignored("store_dns has no effect: DNS answers are not kept across a restart")] = None


class ClashApiOptions(Options, frozen=True, kw_only=True):
    """The REST API that dashboards use."""

    external_controller: str | None = None
    """HOST:PORT; nothing or empty: the API is off."""
    external_ui: str | None = None
    """Folder with the files of a dashboard, served at /ui."""
    secret: str = ""
    default_mode: str = "rule"
    """The mode until the API sets another; what was set is kept where there is a cache_file."""
    access_control_allow_origin: Listable[str] = ()
    """Origins of dashboards that a browser may load from elsewhere; `*`: all."""
    access_control_allow_private_network: Annotated[bool, Hidden()] = False

    external_ui_download_url: Annotated[
        object, Ignored("external_ui_download_url has no effect: fetch the files yourself")
    ] = None
    external_ui_download_detour: Annotated[object, Ignored("external_ui_download_detour has no effect")] = None


class ExperimentalOptions(Options, frozen=True, kw_only=True):
    """Cache file and APIs."""

    cache_file: CacheFileOptions = CacheFileOptions()
    clash_api: ClashApiOptions = ClashApiOptions()

    v2ray_api: Annotated[object, Unsupported("v2ray_api is not supported: use the metrics (engine.metrics)")] = None
    debug: Annotated[object, Ignored("debug has no effect")] = None
    urltest_unified_delay: Annotated[object, Ignored("urltest_unified_delay has no effect")] = None


class FileOptions(Options, frozen=True, kw_only=True):
    """A configuration file."""

    log: LogOptions = LogOptions()
    dns: DnsOptions | None = None
    inbounds: tuple[Annotated[TunOptions | ListenerOptions, INBOUND], ...] = ()
    outbounds: tuple[Annotated[OutboundOptions, OUTBOUND], ...] = ()
    route: RouteOptions = RouteOptions()
    experimental: ExperimentalOptions = ExperimentalOptions()
    engine: EngineOptions = EngineOptions()

    schema: Annotated[str | None, Hidden()] = msgspec.field(default=None, name="$schema")
    ntp: Annotated[object, Ignored("ntp has no effect: the machine keeps its own time")] = None
    certificate: Annotated[
        object, Unsupported("certificate is not supported: write it into the tls of the DNS server that needs it")
    ] = None
    certificate_providers: Annotated[object, Unsupported("certificate_providers is not supported: delete the key")] = (
        None
    )
    http_clients: Annotated[object, Ignored("http_clients has no effect: the engine fetches nothing by itself")] = None
    endpoints: Annotated[
        object,
        Unsupported(
            "endpoints are not supported: set WireGuard up with `wg-quick`, and use a direct outbound with bind_interface"
        ),
    ] = None
    services: Annotated[object, Unsupported("services are not supported: delete the key")] = None
    network_namespaces: Annotated[
        object, Unsupported("network_namespaces is not supported: use `engine start --netns NAME`")
    ] = None
