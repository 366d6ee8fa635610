"""What an evaluation on a server records of it, and what it refuses before anything is played."""

import asyncio
import threading

import pytest

pytest.importorskip("aiohttp")
pytest.importorskip("prometheus_client")
pytest.importorskip("websockets")

from websockets.sync.server import serve

from mem0_jax.cli import main
from mem0_jax.errors import UserError
from mem0_jax.eval.closed import LocalPlayer, RemotePlayer, Variant
from mem0_jax.inference.session import Options
from mem0_jax.serve.client import pack
from mem0_jax.serve.server import Server, Settings
from mem0_jax.serve.service import Service


@pytest.fixture(scope="module")
def address(bundle):
    """A server without a planner, whose sessions average unless told otherwise."""
    loop, box, up = asyncio.new_event_loop(), [], threading.Event()

    async def start():
        box.append(Server(Service(bundle, Options(average=True, threshold=0.25), slots=1, rows=1), Settings(port=0)))
        await box[0].start()
        up.set()

    def work():
        loop.run_until_complete(start())
        loop.run_forever()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert up.wait(120), "the server did not start"
    yield f"ws://127.0.0.1:{box[0].port}"
    asyncio.run_coroutine_threadsafe(box[0].stop(), loop).result(30)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)


@pytest.mark.parametrize(("task", "staged"), [("put_back_block", False), ("press_button", True)])
def test_all_that_decides_how_it_acts_is_recorded(address, bundle, bundle_folder, task, staged):
    player = RemotePlayer(address)
    assert player.policy["provenance"] == bundle.provenance != {}
    far = player.settings(task, Variant("", Options(n_action_steps=2)))
    options = Options(n_action_steps=2, average=True, threshold=0.25)
    near = LocalPlayer(bundle_folder).settings(task, Variant("", options))
    assert far.pop("planner") == ("client" if staged else None)
    assert far == {name: value for name, value in near.items() if name not in ("planner", "memory", "rows")}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["put_back_block", "--n-action-steps", "9"], "between 1 and the policy's horizon 3, got 9"),
        (["put_back_block", "--sweep-horizon", "2,4"], "between 1 and the policy's horizon 3, got 4"),
        (["press_button", "--planner", "server"], "has no planner: start it with --planner URL"),
    ],
)
def test_what_the_server_cannot_do_is_refused_before_anything_is_written(address, tmp_path, capsys, flags, message):
    assert main(["eval", "closed", *flags, "--server", address, "--out", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_another_server_of_openpis_protocol_is_named():
    with serve(lambda ws: ws.send(pack({"policy": "pi0"})), "127.0.0.1", 0) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        with pytest.raises(UserError, match="none of mem0-jax; start one with 'mem0-jax serve"):
            RemotePlayer(f"ws://127.0.0.1:{other.socket.getsockname()[1]}")
        other.shutdown()
