"""Two whole servers behind a proxy: they share the spool, and no film is answered twice."""

import asyncio
import contextlib
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pydicom
import pytest

from pacs_node import count, find_port, find_tool, is_absent, run_store, run_tool, wait_until, write_radiograph
from served import serve, write_findings_model

pytestmark = pytest.mark.skipif(is_absent("storescp"), reason="no storescp (Debian: dcmtk)")


class Proxy:
    """A reverse proxy for TCP that gives each connection to the next server in turn."""

    def __init__(self, *ports: int) -> None:
        self.port, self.taken = find_port(), Counter[int]()
        self.stop: Callable[[], object] = lambda: None
        self.is_open = threading.Event()
        self._turns = itertools.cycle(ports)

    def run(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(self._serve())

    async def _serve(self) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        self.stop = lambda: loop.call_soon_threadsafe(task.cancel)
        async with await asyncio.start_server(self._take, "127.0.0.1", self.port) as server:
            self.is_open.set()
            await server.serve_forever()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port = next(self._turns)
        self.taken[port] += 1
        back_reader, back_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(self._pass(reader, back_writer), self._pass(back_reader, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while part := await reader.read(1 << 16):
                writer.write(part)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()


@contextmanager
def run_proxy(*ports: int) -> Iterator[Proxy]:
    proxy = Proxy(*ports)
    thread = threading.Thread(target=proxy.run)
    thread.start()
    assert proxy.is_open.wait(30)
    try:
        yield proxy
    finally:
        proxy.stop()
        thread.join()


def test_two_servers_behind_a_proxy_answer_each_film_once(tmp_path: Path) -> None:
    model, spool = write_findings_model(tmp_path / "findings"), tmp_path / "spool"
    films = [write_radiograph(tmp_path / "in" / f"{n}.dcm", n) for n in range(1, 7)]
    store, dicom = find_port(), (find_port(), find_port())
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    told = ["--spool", spool, "--calling", "STORESCU", "--results-to", f"STORE@127.0.0.1:{store}"]
    with (
        run_store(tmp_path / "out", store) as out,
        serve(folders[0], model, *told, "--dicom-port", str(dicom[0])) as one,
        serve(folders[1], model, *told, "--dicom-port", str(dicom[1])) as two,
        run_proxy(one.port, two.port) as web,
        run_proxy(*dicom) as pacs,
    ):
        send = [find_tool("storescu"), "-aet", "STORESCU", "-aec", "CHESS_CXR", "127.0.0.1", str(pacs.port)]
        for film in [*films, *films[1:], films[0]]:  # each comes to both
            run_tool(*send, film)
        one_answer = one.post("/v1/predict", films[0].read_bytes()).json()
        one.port = web.port
        answers = [one.post("/v1/predict", films[0].read_bytes()).json() for _ in range(4)]
        wait_until(lambda: count(spool)["sent"] == len(films), 120, spool)
        results = [pydicom.dcmread(path) for path in out.iterdir()]
    assert answers == [one_answer] * 4 and sorted(web.taken.values()) == [2, 2]
    assert sorted(pacs.taken.values()) == [6, 6]
    assert len(results) == len({result.SOPInstanceUID for result in results}) == 2 * len(films)
