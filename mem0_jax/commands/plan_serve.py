"""`mem0-jax plan serve`: a planner behind OpenAI's chat API."""

import argparse
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from mem0_jax.cli import CommandParser
from mem0_jax.errors import UserError
from mem0_jax.installed import how_to_install
from mem0_jax.progress import Progress

SUMMARY = (
    "Serves a planner (a backbone's bundle, of 'mem0-jax plan merge' or 'mem0-jax convert') by OpenAI's chat API: "
    "POST /v1/chat/completions, with images as data URLs and stream=true, GET /v1/models, /healthz and /metrics. The "
    "openai package and the reference's client work as they are. It listens when all is compiled that requests within "
    "--context can need: prompts are padded to 256 tokens or twice, four times, ... as many, images of any number and "
    "size are seen one by one, prompts are answered alone or padded to --batch. What was compiled is kept in "
    "~/.cache/mem0_jax for the next start; a smaller --context or --batch makes the first one quicker. The environment "
    "variable MEM0_API_KEY, where it is set, must be given by clients as their API key."
)
EXAMPLES = (
    "mem0-jax plan serve bundles/planner",
    "mem0-jax plan serve bundles/planner_8b --mesh tensor=2 --name planner-8b --port 8000",
)


def parser() -> CommandParser:
    """The flags."""
    flags = CommandParser("plan serve", SUMMARY, EXAMPLES)
    add = flags.add_argument
    add("bundle", type=Path, metavar="BUNDLE", help="the planner")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all, then set MEM0_API_KEY")
    add("--port", type=int, default=8000, help="port to listen on; 0 takes a free one")
    add("--name", help="model name that clients ask for; by default the bundle folder's name")
    add("--dtype", choices=("float32", "bfloat16"), help="of weights and computing; by default float32 on a CPU only")
    add("--int8", action="store_true", help="round the weights of the text layers to 8 bits")
    add("--mesh", metavar="AXES", help="spread the weights over devices, such as tensor=4 or fsdp=8")
    add("--context", type=positive, default=8192, help="tokens of a prompt and its answer together")
    add("--batch", type=positive, default=8, help="requests answered together")
    add("--queue", type=positive, default=64, help="requests that may wait")
    add("--timeout", type=positive, default=600, metavar="SECONDS", help="for a request and its answer")
    add("--max-images", type=positive, default=32, help="images of a request")
    return flags


def positive(text: str) -> int:
    """A flag's whole number of at least 1, or argparse.ArgumentTypeError."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {value}")
    return value


def main(argv: Sequence[str]) -> None:
    """Serves until interrupted."""
    flags = parser().parse_args(argv)
    try:
        import aiohttp  # noqa: F401
        import prometheus_client  # noqa: F401
    except ImportError as error:
        raise UserError(f"'mem0-jax plan serve' needs {error.name}: {how_to_install('serve')}") from None
    import asyncio

    from mem0_jax.backbones.chat import Prompt, Settings
    from mem0_jax.distributed.mesh import parse_mesh
    from mem0_jax.inference.compiled import keep_compiled_if_possible
    from mem0_jax.planner.chat import ChatLimits
    from mem0_jax.planner.chat_server import ChatServer, ServerLimits
    from mem0_jax.planner.local import load_generator

    key = os.environ.get("MEM0_API_KEY")
    listening = _bind(flags.host, flags.port)
    if flags.host not in ("127.0.0.1", "localhost", "::1") and not key:
        print("warning: anyone who reaches this machine can ask; set MEM0_API_KEY", file=sys.stderr)
    keep_compiled_if_possible()
    mesh = parse_mesh(flags.mesh) if flags.mesh else None
    sizes = {"context": flags.context, "batch": flags.batch}
    with Progress(f"opening {flags.bundle}"):
        generator = load_generator(flags.bundle, dtype=flags.dtype, int8=flags.int8, mesh=mesh, **sizes)
    generator.warm_up()
    generator.generate([Prompt("<|im_start|>user\n")], Settings(max_tokens=2))  # it works, before anyone asks
    limits = ServerLimits(flags.batch, flags.queue, seconds=flags.timeout, chat=ChatLimits(images=flags.max_images))
    name = flags.name or flags.bundle.absolute().name
    server = ChatServer(generator, name, key, limits)
    host, port = listening.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    listening.listen()  # before it is said: who hears of it may come at once
    print(f"serving {name} at {address}/v1; Ctrl-C finishes what runs and stops. Try:", flush=True)
    body = f'{{"model": "{name}", "messages": [{{"role": "user", "content": "hello"}}], "max_tokens": 8}}'
    print(f"  curl {address}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'", flush=True)
    asyncio.run(server.run(listening))


def _bind(host: str, port: int) -> socket.socket:
    """The port is taken before the weights are read: what cannot be is said at once."""
    try:
        if not 0 <= port < 2**16:
            raise OverflowError("a port is at most 65535")
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen on {host}:{port} ({error}): choose another with --host or --port") from None
    return made
