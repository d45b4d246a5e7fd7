"""What the OpenAPI description says besides the types: bodies, problems, and examples that the served models gave."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from chess_cxr.serve.problem import PROBLEM, Problem

_FILE = {"schema": {"type": "string", "format": "binary"}}
_ADDRESS = {"dicomweb": "https://pacs.example.org/dicom-web/studies/1.2.3/series/1.2.3.4/instances/1.2.3.4.5"}
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/dicom": _FILE,
            "image/png": _FILE,
            "image/jpeg": _FILE,
            "application/octet-stream": _FILE,
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"film": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {"dicomweb": {"type": "string", "format": "uri"}, "bearer": {"type": "string"}},
                    "required": ["dicomweb"],
                },
                "example": _ADDRESS,
            },
        },
    }
}
_TOLD = {
    400: "the body is damaged or empty",
    401: "the token is missing or wrong",
    403: "the host is not allowed",
    404: "there is no such model or label",
    406: "the film cannot be given in this format",
    408: "the body did not arrive in time",
    413: "the body is too large",
    415: "the body is no film",
    422: "the film was refused, for the reason in detail",
    503: "the server is full; Retry-After says when to try again",
}


def _show(status: int, detail: str) -> dict[str, Any]:
    body = Problem(status, "damaged or unsupported file (OSError)" if status == 422 else detail).as_json()
    return {"description": detail, "content": {PROBLEM: {"example": json.loads(body)}}}


PROBLEMS: dict[int | str, dict[str, Any]] = {status: _show(status, detail) for status, detail in _TOLD.items()}


def add_examples(app: Any, rest: Any) -> None:
    """Add what the classifiers answer to a golden film (SYNTHETIC), computed when the description is asked for."""
    build = app.openapi

    def describe() -> dict[str, Any]:
        if not app.openapi_schema:
            described: dict[str, Any] = build()
            ok = described["paths"]["/v1/predict"]["post"]["responses"]["200"]["content"]["application/json"]
            ok["example"] = {"answers": _answer_golden_film(rest)}
            listed = described["paths"]["/v1/models"]["get"]["responses"]["200"]["content"]["application/json"]
            listed["example"] = {"models": rest.models.describe()}
            app.openapi_schema = described
        schema: dict[str, Any] = app.openapi_schema
        return schema

    app.openapi = describe


def _answer_golden_film(rest: Any) -> list[dict[str, Any]]:
    from chess_cxr.tasks.classify.answer import ReadFilm
    from chess_cxr.tasks.runtime import draw_golden_films

    film = ReadFilm("", film_HW=draw_golden_films()[0].astype("float32") / 255)
    names = rest.models.classifiers
    return [asdict(rest.models.answer(name, film, rest.options.point)) | {"film": 0, "source": ""} for name in names]
