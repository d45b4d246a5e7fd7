"""Serve models in the browser, over REST and in the PACS: serve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from chess_cxr.arguments import Flat, check_workers
from chess_cxr.records import UsageError
from chess_cxr.serve.options import PacsOptions
from chess_cxr.serve.rest_options import RestOptions

NO_NODE = PacsOptions(Path("spool"), "")


def serve(
    models: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="MODEL…")],
    rest: Flat[RestOptions] = RestOptions(),  # noqa: B008
    pacs: Flat[PacsOptions] = NO_NODE,
) -> None:
    """Serve models in the browser, over REST and in the PACS.

    MODEL is a folder from finetune classify or finetune bones, an encoder by folder or name, or a published bone model,
    such as bones-small; several are served at once.  The page is at http://HOST:PORT/, REST at /v1/, its description at
    /openapi.json.  With --dicom-port or --pull it is a PACS node too.  Runs until Ctrl-C.  Research software, not a
    medical device.

    Example: chess-cxr serve models/findings models/bones

    Args:
        models: model folders and encoders.
        rest: the server and the page.
        pacs: the PACS node; --host, --workers, --film-mib, --trusted-network and the limits hold for REST too.
    """
    check_workers(pacs.workers)
    if not models:
        raise UsageError("no model is given; name one, such as models/findings")
    from chess_cxr.serve.run import serve as run

    run(models, pacs, rest)
