"""A real S3 server on this machine, in a process of its own, for tests that read and write by URL."""

import contextlib
import http.client
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow.fs

STARTUP_SECONDS = 60.0


@dataclass(frozen=True)
class ObjectStore:
    """endpoint: http://127.0.0.1:PORT.  environment: what a program needs to reach it, as the AWS tools name it."""

    endpoint: str
    environment: Mapping[str, str]

    @property
    def filesystem(self) -> pyarrow.fs.S3FileSystem:
        return pyarrow.fs.S3FileSystem(
            endpoint_override=self.endpoint,
            access_key=self.environment["AWS_ACCESS_KEY_ID"],
            secret_key=self.environment["AWS_SECRET_ACCESS_KEY"],
            region=self.environment["AWS_REGION"],
            allow_bucket_creation=True,
        )

    def make_bucket(self, name: str) -> None:
        self.filesystem.create_dir(name)

    def upload(self, path: Path, key: str) -> None:
        """Put a file of this machine at BUCKET/KEY."""
        with self.filesystem.open_output_stream(key) as file:
            file.write(path.read_bytes())

    def make_many(self, keys: Iterable[str]) -> None:
        """Put an empty object at each BUCKET/KEY, over one connection: many times faster than one by one."""
        connection = http.client.HTTPConnection(self.endpoint.removeprefix("http://"))
        with contextlib.closing(connection):
            for key in keys:
                connection.request("PUT", f"/{key}")
                connection.getresponse().read()

    def list_keys(self, prefix: str) -> list[str]:
        """List the keys of all objects below BUCKET/PREFIX."""
        infos = self.filesystem.get_file_info(pyarrow.fs.FileSelector(prefix, recursive=True))
        return sorted(info.path for info in infos if info.is_file)

    @contextlib.contextmanager
    def refuse_strangers(self) -> Iterator[None]:
        """From here on let only users in that the server knows; it knows none."""
        self._set_free_requests("0")
        try:
            yield
        finally:
            self._set_free_requests("inf")

    def _set_free_requests(self, count: str) -> None:
        url = f"{self.endpoint}/moto-api/reset-auth"
        headers = {"Content-Type": "text/plain"}
        with urllib.request.urlopen(urllib.request.Request(url, count.encode(), headers, method="POST")):
            pass


@contextlib.contextmanager
def run_object_store() -> Iterator[ObjectStore]:
    """Start a server on a free port of the loopback interface and end it afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test-key",
        "AWS_SECRET_ACCESS_KEY": "test-secret",
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(server, port)
        yield ObjectStore(environment["AWS_ENDPOINT_URL"], environment)
    finally:
        server.terminate()
        server.wait(30)


def _wait_for(server: subprocess.Popen[bytes], port: int) -> None:
    ends = time.monotonic() + STARTUP_SECONDS
    while time.monotonic() < ends:
        if server.poll() is not None:
            raise RuntimeError(f"the object store ended with code {server.returncode} while it was starting")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"the object store did not answer within {STARTUP_SECONDS:.0f} s")
