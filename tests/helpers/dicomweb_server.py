"""A DICOMweb server of one film, and what is secret about the film."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

CANARY = "Canary^Quentin"
TOKEN = "a-token-of-twenty-letters"
UIDS = ("1.2.826.0.1.99", "1.2.826.0.1.98", "1.2.826.0.1.97")
INSTANCE = "/dicom-web/studies/{}/series/{}/instances/{}".format(*UIDS)


class Pacs(BaseHTTPRequestHandler):
    """A DICOMweb server of one film; /away redirects."""

    film = b""

    def do_GET(self) -> None:
        if "/away/" in self.path:
            self.send_response(302)
            self.send_header("Location", "http://127.0.0.1:1/")
            self.end_headers()
            return
        body = b"--x\r\nContent-Type: application/dicom\r\n\r\n" + self.film + b"\r\n--x--\r\n"
        self.send_response(200 if self.headers["Authorization"] == f"Bearer {TOKEN}" else 401)
        self.send_header("Content-Type", 'multipart/related; type="application/dicom"; boundary=x')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def run_dicomweb(film: Path) -> Iterator[int]:
    """Serve a film; yields the port."""
    Pacs.film = film.read_bytes()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pacs)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
