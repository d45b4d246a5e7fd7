"""REST under /v1/ and the page at /: a FastAPI application of several models.

The annotations of this module are read while it runs, so they are no strings.
"""

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from PIL import Image

from chess_cxr.records import ChessError, Undecodable, import_extra
from chess_cxr.serve.accept import choose_kind
from chess_cxr.serve.body import find_source, receive_films
from chess_cxr.serve.child import SHOWN_SIDE
from chess_cxr.serve.desk import Desk
from chess_cxr.serve.guard import Guard, Metrics, explain
from chess_cxr.serve.models import Models
from chess_cxr.serve.openapi import BODY, PROBLEMS, add_examples
from chess_cxr.serve.options import MIB, PacsOptions
from chess_cxr.serve.problem import Problem
from chess_cxr.serve.rest_options import RestOptions, is_loopback, read_token
from chess_cxr.tasks.answer import FilmAnswer

if TYPE_CHECKING:
    from chess_cxr.serve.known import KnownFilms

SERVER = "the server"
fastapi = import_extra("fastapi", "serve", SERVER)
Described = dict[int | str, dict[str, Any]]
ARROW, PNG = "application/vnd.apache.arrow.stream", "image/png"
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


async def _take_films(request: Any) -> AsyncIterator[list[Path]]:
    rest: Rest = request.app.state.rest
    async with rest.desk.take_request() as place:
        yield await receive_films(request, place, rest.desk, rest.pacs, rest.options)


_take_films.__annotations__["request"] = fastapi.Request
Films = Annotated[list[Path], fastapi.Depends(_take_films)]
Accept = Annotated[str, fastapi.Header()]
Side = Annotated[int, fastapi.Query(ge=0)]


@dataclass(frozen=True)
class FilmsAnswer(FilmAnswer):
    """film: number of the film in the request, from 0.  source: its address within the study or series asked for."""

    film: int = 0
    source: str = ""


@dataclass(frozen=True)
class Answers:
    """The answers to the films of a request, film by film."""

    answers: list[FilmsAnswer]


class Rest:
    """The routes, and what they share."""

    def __init__(self, models: Models, pacs: PacsOptions, options: RestOptions) -> None:
        self.models, self.pacs, self.options, self.metrics = models, pacs, options, Metrics()
        self.desk = Desk(pacs.workers, pacs.limits, options.most_requests, int(options.spool_gib * 1024 * MIB))
        self.page = {
            part.name: part.read_bytes() for part in files("chess_cxr").joinpath("serve/page").iterdir()
            if Path(part.name).suffix in KINDS
        }  # fmt: skip

    # ------------------------------------------------------------ what is there

    async def list_models(self) -> dict[str, Any]:
        """Return the models that are served, with the hashes of their weights and pixel contracts."""
        return {"version": version("chess-cxr"), "point": self.options.point, "models": self.models.describe()}

    async def tell_health(self) -> dict[str, str]:
        """Whether the process is alive."""
        return {"status": "alive"}

    async def tell_ready(self) -> dict[str, str]:
        """Whether the next request would be taken."""
        if self.desk.closing or self.desk.is_full:
            raise self.desk.send_away()
        return {"status": "ready"}

    async def tell_metrics(self) -> Any:
        """Return the server's numbers in Prometheus' format."""
        self.metrics.waiting.set(self.desk.requests)
        return fastapi.Response(self.metrics.render(), headers={"Content-Type": self.metrics.kind})

    async def show_page(self, name: str = "index.html") -> Any:
        """Return a part of the page."""
        if name not in self.page:
            raise Problem(404, "there is nothing here")
        return fastapi.Response(self.page[name], headers={"Content-Type": KINDS[Path(name).suffix]})

    # ------------------------------------------------------------ what models say

    async def predict(self, films: Films, model: str = "", point: str = "") -> Answers:
        """Answer films by the classifiers, or by one of them, as `chess-cxr predict` does.

        A refused film among several has a reason and no findings; if all are refused, the status is 422.
        """
        names = [_choose(self.models.classifiers, model, "classifier")] if model else list(self.models.classifiers)
        if not names:
            raise Problem(404, "no classifier is served")
        answers = await self.desk.run(self._answer, films, names, point or self.options.point)
        for answer in answers:
            self.metrics.films.labels("refused" if answer.reason else "answered").inc()
        if all(answer.reason for answer in answers):
            raise Problem(422, answers[0].reason, more={"reasons": [answer.reason for answer in answers]})
        return Answers(answers)

    def _answer(self, films: list[Path], names: list[str], point: str) -> list[FilmsAnswer]:
        from chess_cxr.tasks.classify.answer import read_films

        read = read_films(films, self.desk.readers, self.desk.limits)
        return [
            FilmsAnswer(**vars(self.models.answer(name, film, point)), film=number, source=find_source(films[number]))
            for number, film in enumerate(read)
            for name in names
        ]

    async def explain(
        self, films: Films, label: str = "", model: str = "", style: Literal["overlay", "map"] = "overlay"
    ) -> Any:
        """Draw what in a film spoke for a label: over the film, or as a map alone whose opacity is its strength."""
        name = _choose(self.models.classifiers, model, "classifier")
        labels = self.models.classifiers[name].labels
        if label and label not in labels:
            raise Problem(404, f"this model has no such label; there are {', '.join(labels)}")
        drawn = await self.desk.run(self._explain, _take_one(films), name, labels.index(label or labels[0]), style)
        return fastapi.Response(drawn, media_type="image/png")

    def _explain(self, film: Path, name: str, label: int, style: str) -> bytes:
        from chess_cxr.tasks.classify.saliency_sheet import colour_map, draw_overlay

        film_HW = self._read(film)
        map_HW = self.models.explain(name, film_HW)[label]
        if style == "map":
            return _pack_png(colour_map(map_HW))
        return _pack_png(draw_overlay(np.rint(255 * film_HW).astype(np.uint8), map_HW))

    def _read(self, film: Path) -> np.ndarray:
        """Return a film as the ingest reads it, float32 [H, W]."""
        from chess_cxr.tasks.classify.answer import read_films

        [read] = read_films([film], self.desk.readers, self.desk.limits)
        if read.film_HW is None:
            raise Undecodable(read.reason)
        return read.film_HW

    async def suppress_bones(self, films: Films, model: str = "", side: Side = 0, accept: Accept = "*/*") -> Any:
        """Return a film without bone: DICOM for DICOM and PNG for other files, or PNG if Accept says so.

        side: longest side of a PNG in pixels; 0 leaves the film's own.
        """
        name, film = _choose(self.models.bones, model, "bone model"), _take_one(films)
        kind = choose_kind(accept, ("application/dicom", PNG))
        if kind is None:
            raise Problem(406, f"a film without bone is given as application/dicom or {PNG}")
        made = await self.desk.run(self._suppress, film, name, min(side or 1 << 16, 1 << 16) if kind == PNG else 0)
        if made.startswith(b"\x89PNG") and (kind := choose_kind(accept, (PNG,))) is None:
            raise Problem(406, "a film that is no DICOM file becomes PNG")
        return fastapi.Response(made, media_type=kind)

    def _suppress(self, film: Path, name: str, side: int) -> bytes:
        from chess_cxr.tasks.bones.model import find_change

        model = self.models.bones[name]
        change_HW = find_change(model, self.desk.ask("decode", film).pixels)
        made: bytes = self.desk.ask("suppress", film, change_HW, model.sha256[:16], side)
        return made

    async def show_film(self, films: Films) -> Any:
        """Return a film as PNG, bone bright, for the page."""
        drawn = await self.desk.run(self.desk.ask, "draw", _take_one(films), SHOWN_SIDE)
        return fastapi.Response(drawn, media_type="image/png")

    async def embed(self, films: Films, model: str = "", accept: Accept = "*/*") -> Any:
        """Embed films, as JSON, or as an Arrow stream of one row for each film if Accept says so."""
        name = _choose(self.models.encoders, model, "encoder")
        served = self.models.encoders[name]
        feature_ND = await self.desk.run(self._embed, films, name)
        about = {"model": name, "model_sha256": served.sha256, "contract_sha256": served.contract_sha256}
        if choose_kind(accept, ("application/json", ARROW)) != ARROW:
            return about | {"features": feature_ND.tolist()}
        column = pa.FixedSizeListArray.from_arrays(pa.array(feature_ND.ravel()), feature_ND.shape[1])
        table, written = pa.table({"feature": column}).replace_schema_metadata(about), pa.BufferOutputStream()
        with pa.ipc.new_stream(written, table.schema) as stream:
            stream.write_table(table)
        return fastapi.Response(written.getvalue().to_pybytes(), media_type=ARROW)

    def _embed(self, films: list[Path], name: str) -> np.ndarray:
        return self.models.encoders[name].encoder.embed([self._read(film) for film in films])

    async def find_neighbours(self, films: Films, count: int = 6) -> dict[str, Any]:
        """Return the films of the store that the first encoder finds most like a film, with their labels."""
        known, film = self._get_known(), _take_one(films)
        feature_ND = await self.desk.run(self._embed, [film], next(iter(self.models.encoders)))
        return {"neighbours": known.find_nearest(feature_ND[0], max(1, count))}

    async def show_known(self, number: int) -> Any:
        """Return a film of the store, as it is stored."""
        content = await self.desk.run(self._get_known().read_jpeg, number)
        return fastapi.Response(content, media_type="image/jpeg")

    def _get_known(self) -> "KnownFilms":
        if self.models.known is None:
            raise Problem(404, "no store is served; --store names one")
        return self.models.known


def _choose(models: Any, name: str, kind: str) -> str:
    """Return the name of one of several models; the first, if none is named."""
    if not models:
        raise Problem(404, f"no {kind} is served")
    if name and name not in models:
        raise Problem(404, f"no {kind} of this name is served; there are {', '.join(models)}")
    return name or str(next(iter(models)))


def _take_one(films: list[Path]) -> Path:
    if len(films) != 1:
        raise Problem(422, "send one film at a time for this")
    return films[0]


def _pack_png(picture: np.ndarray) -> bytes:
    written = io.BytesIO()
    Image.fromarray(picture).save(written, "PNG", compress_level=1)
    return written.getvalue()


def build_app(models: Models, pacs: PacsOptions, options: RestOptions) -> Any:
    """Build the ASGI application; its shutdown ends the child processes."""
    rest = Rest(models, pacs, options)

    @asynccontextmanager
    async def live(_app: Any) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(rest.desk.close)

    app = fastapi.FastAPI(
        title="chess-cxr", version=version("chess-cxr"), lifespan=live, docs_url=None, redoc_url=None,
        redirect_slashes=False,
        description="Research software, not a medical device.",
    )  # fmt: skip
    app.state.rest = rest
    png: Described = {200: {"content": {"image/png": {}}}}
    bones: Described = {200: {"content": {"application/dicom": {}, "image/png": {}}}}
    vectors: Described = {200: {"content": {"application/json": {}, ARROW: {}}}}
    app.get("/v1/models")(rest.list_models)
    for path, route, responses in (
        ("/v1/predict", rest.predict, {}),
        ("/v1/saliency", rest.explain, png),
        ("/v1/suppress-bones", rest.suppress_bones, bones),
        ("/v1/embed", rest.embed, vectors),
        ("/v1/neighbours", rest.find_neighbours, {}),
        ("/v1/film", rest.show_film, png),
    ):
        described = {"openapi_extra": BODY, "responses": PROBLEMS | responses}
        app.post(path, response_model=Answers if path == "/v1/predict" else None, **described)(route)
    app.get("/v1/known/{number}", response_model=None)(rest.show_known)
    app.get("/health")(rest.tell_health)
    app.get("/ready")(rest.tell_ready)
    app.get("/metrics", response_model=None)(rest.tell_metrics)
    app.get("/", response_model=None, include_in_schema=False)(rest.show_page)
    app.get("/page/{name}", response_model=None, include_in_schema=False)(rest.show_page)
    _handle_errors(app)
    add_examples(app, rest)
    return Guard(
        app,
        rest.metrics,
        token=read_token(options.token_file),
        loopback_only=is_loopback(pacs.host) and not pacs.trusted_network,
        most_bytes=pacs.film_mib * MIB,
        body_seconds=options.body_seconds,
    )


def _handle_errors(app: Any) -> None:
    """Let every error be a problem, and none quote the request."""

    async def answer(_request: Any, error: Exception) -> Any:
        problem = error if isinstance(error, Problem) else _translate(error)
        return fastapi.Response(
            problem.as_json(), problem.status, {"Content-Type": "application/problem+json"} | problem.headers
        )

    for kind in (
        Problem,
        ChessError,
        fastapi.exceptions.RequestValidationError,
        fastapi.HTTPException.__base__,
        Exception,
    ):
        app.exception_handler(kind)(answer)


def _translate(error: Exception) -> Problem:
    if isinstance(error, fastapi.exceptions.RequestValidationError):
        known = {"model", "point", "label", "style", "side", "count", "number"}
        named = sorted({str(found["loc"][-1]) for found in error.errors()} & known)
        return Problem(422, f"a parameter is not valid: {', '.join(named) or 'see /openapi.json'}")
    status = getattr(error, "status_code", 500)
    told = {404: "there is nothing here", 405: "this method is not for this address"}
    return Problem(status, told.get(status, "the request cannot be answered")) if status < 500 else explain(error)
