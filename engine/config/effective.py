"""Files and command line -> the configuration in force. A reload makes it anew, and changes nothing when that fails."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import msgspec

from engine.config.build.machine import Machine
from engine.config.load import expand, load
from engine.config.model import EngineConfig, LogConfig
from engine.config.named_proxy import for_proxy, with_proxy
from engine.config.resolve import resolve
from engine.http import HttpOptions
from engine.http.listen import metrics_options
from shared.config import ProxyConfig

__all__ = ["CommandLine", "UsageError", "effective"]


class UsageError(Exception):
    """Options that exclude each other; the text is one sentence."""


class CommandLine(msgspec.Struct, frozen=True, kw_only=True):
    """What comes before the files. None: nothing is said."""

    files: tuple[Path, ...] = ()
    workers: int | None = None
    proxy: ProxyConfig | None = None
    """Named, or found where there are no files."""
    interface: str | None = None
    mtu: int | None = None
    auto_route: bool = True
    """False: --no-auto-route."""
    offload: Literal["auto", "uso", "tso", "csum", "none", "no-header"] | None = None
    kill_switch: bool = False
    metrics: str | None = None
    secret: str = ""
    """Of the environment."""
    log_level: Literal["debug", "info", "warning", "error"] | None = None
    log_format: Literal["text", "json"] | None = None


def effective(
    line: CommandLine, machine: Machine | None = None, *, known: Mapping[str, tuple[str, ...]] | None = None
) -> tuple[EngineConfig, tuple[str, ...]]:
    """Return the configuration in force, names resolved, and remarks for the user: warnings of the files among them.

    Nothing of the machine is changed. Without files there must be a proxy. `known`: addresses that names had before, for
    those that are not found now. Raises ConfigError, ResolveError, ListenError, UsageError, and OSError for a directory
    that cannot be read.
    """
    if line.files:
        config = load(expand(line.files), machine)
        if line.proxy is not None:
            config = with_proxy(config, line.proxy)
    else:
        assert line.proxy is not None, "without files there is a proxy"
        config = for_proxy(line.proxy)
    config, troubles = resolve(_with_options(config, line), known)
    if config.kill_switch and not config.tun.auto_route:
        raise UsageError("the kill switch needs the routes: leave --no-auto-route out, or write auto_route: true")
    remarks = (warning.replace(": warning: ", ": ", 1) for warning in config.warnings)
    return config, (*remarks, *troubles)


def _with_options(config: EngineConfig, line: CommandLine) -> EngineConfig:
    tun, log = config.tun, config.log
    return msgspec.structs.replace(
        config,
        workers=line.workers or config.workers,
        tun=msgspec.structs.replace(
            tun,
            interface_name=line.interface or tun.interface_name,
            mtu=line.mtu or tun.mtu,
            offload=line.offload or tun.offload,
            auto_route=tun.auto_route and line.auto_route,
        ),
        log=LogConfig(
            level=line.log_level or log.level,
            format=line.log_format or log.format,
            output=log.output,
            timestamp=log.timestamp,
        ),
        kill_switch=config.kill_switch or line.kill_switch,
        http=_http(config.http, line.metrics, line.secret),
    )


def _http(of_file: HttpOptions | None, metrics: str | None, secret: str) -> HttpOptions | None:
    """Return what is served where: --metrics comes before the file's engine.metrics, the environment's secret before its own."""
    if metrics is None:
        return replace(of_file, secret=secret or of_file.secret) if of_file is not None else None
    named = metrics_options(metrics, secret=secret or (of_file.secret if of_file is not None else ""))
    if named is None or of_file is None:
        return named
    clash_api = tuple(address for address in of_file.addresses if of_file.is_named)
    return replace(
        of_file, addresses=tuple(dict.fromkeys((*named.addresses, *clash_api))), is_named=True, secret=named.secret
    )
