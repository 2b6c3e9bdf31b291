# SPDX-License-Identifier: Apache-2.0
"""``lampo serve``: an OpenAI-compatible HTTP server."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import socket
from pathlib import Path
from typing import Annotated, Any

import typer

from lampo.cli import options as o
from lampo.cli.job import Job
from lampo.cli.options import ModelOptions
from lampo.cli.terminal import note, show_logging

_SERVER = "Server"
_LIMITS = "Limits"
_NEEDED = ("fastapi", "uvicorn", "prometheus_client")


def _option(panel: str, *names: str, help: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **settings)


@o.with_options(*o.options_of(ModelOptions))
def serve(
    ctx: typer.Context,
    *,
    served_model_name: Annotated[
        str | None,
        _option(
            "Model",
            "--served-model-name",
            help="What clients call the model. Default: its own name.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[
        str,
        _option(_SERVER, "--host", help="Address to listen on; 0.0.0.0 for other machines too."),
    ] = "127.0.0.1",
    port: Annotated[
        int, _option(_SERVER, "--port", help="0: any that is free.", min=0, max=65535)
    ] = 8000,
    api_key: Annotated[
        list[str] | None,
        _option(
            _SERVER,
            "--api-key",
            help="A key that calls must bring; may be repeated. Other users of this machine can "
            "see it here: prefer LAMPO_API_KEY.",
            show_default=False,
        ),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        _option(
            _SERVER,
            "--allowed-host",
            help="Answer only under this host name; may be repeated. Default: on loopback without "
            "keys, its usual names; else any.",
            show_default=False,
        ),
    ] = None,
    access_log: Annotated[
        bool, _option(_SERVER, "--access-log", help="One line on stderr for every call.")
    ] = False,
    quiet: o.Quiet = False,
    max_waiting: Annotated[
        int, _option(_LIMITS, "--max-waiting", help="Requests in the queue; more get 429.")
    ] = 256,
    max_n: Annotated[int, _option(_LIMITS, "--max-n", help="Completions of a prompt.")] = 16,
    max_body_bytes: Annotated[
        int, _option(_LIMITS, "--max-body-bytes", help="Size of a request.")
    ] = 4 << 20,
    request_timeout: Annotated[
        float | None,
        _option(
            _LIMITS,
            "--request-timeout",
            help="Seconds that a request may take.",
        ),
    ] = 3600.0,
    allow_grammars: Annotated[
        bool,
        _option(
            _LIMITS,
            "--allow-grammars",
            help="Let clients send Lark grammars; one made for it can hold up the others.",
        ),
    ] = False,
    drain_timeout: Annotated[
        float,
        _option(_LIMITS, "--drain-timeout", help="Seconds for running requests after SIGTERM."),
    ] = 30.0,
    **options: Any,
) -> Job:
    """Serve a model over HTTP, compatible with OpenAI's API: completions, chat, streams.

    Listens on this machine only, unless --host says otherwise. LAMPO_API_KEY holds a key that every
    call must bring, but for GET /health. Endpoints, limits and metrics: docs/server.md.
    """
    return functools.partial(_run, dict(ctx.params))


def _run(values: dict[str, Any]) -> int:
    _check_installed()
    from lampo.server.listen import LOOPBACK_HOSTS, bind, is_loopback
    from lampo.server.settings import Settings

    keys = tuple(values["api_key"] or ())
    if "LAMPO_API_KEY" in os.environ:  # an empty key is an error
        keys += (os.environ["LAMPO_API_KEY"],)
    host, loopback = values["host"], is_loopback(values["host"])
    hosts = tuple(values["allowed_host"] or ())
    if not hosts and loopback and not keys:
        hosts = (*LOOPBACK_HOSTS, host)
    settings = Settings(
        model_name=values["served_model_name"] or _model_name(values["model"]),
        api_keys=keys,
        allowed_hosts=hosts or None,
        max_n=values["max_n"],
        max_body_bytes=values["max_body_bytes"],
        request_timeout=values["request_timeout"],
        allow_grammars=values["allow_grammars"],
        drain_timeout=values["drain_timeout"],
    )
    show_logging(values["quiet"])
    sock = bind(host, values["port"])
    if not loopback and not keys:
        note("warning: other machines can use this server without a key; see LAMPO_API_KEY")
    return _serve(values, settings, sock)


def _serve(values: dict[str, Any], settings: Any, sock: socket.socket) -> int:
    from lampo.cli.session import open_llm

    llm = open_llm(ModelOptions.of(values), values["quiet"])
    from lampo.async_llm import AsyncLLM
    from lampo.server.listen import url_of
    from lampo.server.run import Server

    _log(values["access_log"])
    url = url_of(sock)
    server = Server(
        AsyncLLM(llm, max_waiting=values["max_waiting"]),
        settings,
        access_log=values["access_log"],
        on_start=lambda: note(f"{settings.model_name} is served on {url}"),
    )
    server.serve_forever(sock)
    llm.close()
    return 0


def _check_installed() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"{', '.join(missing)}: not installed; run: pip install 'lampo[serve]'")


def _model_name(model: str | None) -> str:
    """A hub id as it is; the file's or folder's name; the default model's name."""
    if model is None:
        return "SmolLM2-135M-Instruct"
    path = Path(model).expanduser()
    if not path.exists():
        return model
    path = path.resolve()
    return path.stem if path.suffix == ".gguf" else path.name


def _log(access: bool) -> None:
    """Errors with tracebacks on stderr, and one line per call if asked for."""
    from lampo.server.log import ShortLines

    handler = logging.StreamHandler()
    handler.setFormatter(ShortLines("lampo: %(message)s"))
    levels = {"lampo.server": logging.WARNING, "uvicorn.error": logging.ERROR}
    if access:
        levels["uvicorn.access"] = logging.INFO
    for name, level in levels.items():
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
