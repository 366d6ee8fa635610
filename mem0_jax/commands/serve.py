"""`mem0-jax serve`: a bundle that drives robots and simulators over the network."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mem0_jax.cli import CommandParser
from mem0_jax.commands.acting import add_acting, add_planner, options_of, planner_of, secret
from mem0_jax.errors import UserError
from mem0_jax.installed import how_to_install
from mem0_jax.progress import Progress

if TYPE_CHECKING:
    from mem0_jax.serve.server import Server, Settings

SUMMARY = (
    "Serves a policy bundle: WebSocket as openpi's client package speaks it, with sessions, batches and staged tasks; "
    "POST /process_frame for forms; a page of live sessions at /; /healthz and /metrics. It is healthy when all steps, "
    "and those of a planner's bundle, are compiled; what was compiled is kept in ~/.cache/mem0_jax for the next start. "
    "Ctrl-C or SIGTERM ends it when what runs is finished. The environment variable MEM0_TOKEN holds the token, where "
    "clients must know one."
)


def parser() -> CommandParser:
    """The flags."""
    flags = CommandParser("serve", SUMMARY, ["mem0-jax serve runs/demo/with_memory/bundle --n-action-steps 2"])
    flags.add_argument("bundle", type=Path, metavar="BUNDLE", help="the bundle's folder")
    flags.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 opens it to the network")
    flags.add_argument("--port", type=int, default=8000, help="port to listen on; 0 takes a free one")
    flags.add_argument("--token-file", type=Path, metavar="FILE", help="clients must know the token in this file")
    flags.add_argument("--sessions", type=int, default=16, metavar="N", help="sessions at a time")
    flags.add_argument("--idle-seconds", type=float, default=600.0, metavar="S", help="drop sessions idle for so long")
    flags.add_argument("--queue", type=int, default=256, metavar="N", help="requests that may wait")
    flags.add_argument(
        "--rows", type=int, metavar="N", help="size of all steps: a quicker warm-up, answers do not vary"
    )
    flags.add_argument("--message-mb", type=float, default=32.0, metavar="MB", help="greatest message")
    flags.add_argument("--grace-seconds", type=float, default=10.0, metavar="S", help="for what runs, when stopped")
    add_acting(flags, "A session's reset may choose its own, but for the flow steps.")
    add_planner(flags, "a planner's bundle, or an OpenAI-compatible address such as http://localhost:8001/v1")
    return flags


def main(argv: Sequence[str]) -> int:
    """Serves until it is told to stop."""
    flags = parser().parse_args(argv)
    try:
        import aiohttp  # noqa: F401
        import prometheus_client  # noqa: F401
    except ImportError as error:
        raise UserError(f"serving needs {error.name}: {how_to_install('serve')}") from None
    import asyncio

    from mem0_jax.inference.compiled import keep_compiled_if_possible
    from mem0_jax.policies.bundle import load_bundle
    from mem0_jax.serve.protocol import Limits
    from mem0_jax.serve.server import Settings, run
    from mem0_jax.serve.service import Service

    token = secret("MEM0_TOKEN", "--token-file", flags.token_file)
    settings = Settings(flags.host, flags.port, token, grace_seconds=flags.grace_seconds)
    if not settings.local and not settings.token:
        print(f"warning: anybody who reaches {flags.host} can use this server: set a token", file=sys.stderr)
    keep_compiled_if_possible()
    if flags.planner is None and (flags.planner_model or flags.planner_key_file or flags.planner_summary):
        raise UserError("--planner-model, --planner-key-file and --planner-summary need --planner")
    planner = None if flags.planner is None else planner_of(flags)
    with Progress(f"opening {flags.bundle}"):
        bundle = load_bundle(flags.bundle, dtype="serving").with_flow_steps(flags.flow_steps)
    limits = Limits(message=int(flags.message_mb * 2**20))

    async def serve() -> bool:
        bounds = {"slots": flags.sessions, "idle_seconds": flags.idle_seconds, "queue": flags.queue, "limits": limits}
        service = Service(bundle, options_of(flags), planner, rows=flags.rows, **bounds)
        print(f"{flags.bundle}: warming up", flush=True)
        return await run(service, settings, lambda server: print(_greeting(server, settings), flush=True))

    was_healthy = asyncio.run(serve())
    print("stopped", flush=True)
    if not was_healthy:
        os._exit(0)  # an ordinary end would wait for the compilers, and nobody was served
    return 0


def _greeting(server: "Server", settings: "Settings") -> str:
    host = settings.host if settings.host not in ("0.0.0.0", "::") else "127.0.0.1"
    place = f"[{host}]:{server.port}" if ":" in host else f"{host}:{server.port}"
    token = " -H 'Authorization: Api-Key TOKEN'" if settings.token else ""
    hint = "#token=TOKEN" if settings.token else ""
    cameras = server.service.senses.cameras
    pictures = [f"-F image.{name}=@{name}.png" for name in cameras] if len(cameras) > 1 else ["-F image=@frame.png"]
    return (
        f"ready: ws://{place}, page http://{place}/{hint}\n"
        f"try: curl{token} -F text='put the block back' {' '.join(pictures)} http://{place}/process_frame"
    )
