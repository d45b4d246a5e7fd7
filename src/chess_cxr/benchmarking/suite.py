"""What a benchmark compares: encoders by name, tasks, label fractions and draws, read from TOML or a preset."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from chess_cxr.encoders.names import EXAMPLES, locate_encoder
from chess_cxr.files.locations import is_url
from chess_cxr.records import UsageError

FRACTIONS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
RELATIVE = ("random", "imagenet")  # named without a network: those of the reference's
Head = Literal["linear", "knn", "mlp", "attentive", "full"]
_NAME = re.compile(r"[\w][\w .+-]{0,63}")


@dataclass(frozen=True)
class EncoderSource:
    """An encoder that any process can load: its name in the tables, what to load, and the network that an untrained
    one is like (another `spec`, or "").
    """

    name: str
    spec: str
    like: str = ""


@dataclass(frozen=True)
class TaskSpec:
    """One task of a suite.

    store: path or URL of a store with labels.  labels: their names, all of the store's by default.
    sites: of the films, all by default.  kind: by default told from the labels.  uncertain: what an uncertain label
    counts as.  heads: what is fitted to the encoders, "knn" or modes of `FinetuneConfig`.  fractions: instead of the
    suite's; film_counts: further label subsets, by number of films, one of each patient.  first_draw: a 0/1 column of
    the store that marks the first draw of a subset of its own size.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    store: str
    labels: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()
    kind: Literal["multiclass", "multilabel"] | None = None
    uncertain: Literal["ignore", "ones", "zeros"] = "ignore"
    heads: tuple[Head, ...] = ("linear",)
    fractions: tuple[float, ...] | None = None
    film_counts: tuple[int, ...] = ()
    first_draw: str = ""


@dataclass(frozen=True)
class Suite:
    """A benchmark, resolved: what is compared, and how.

    encoders: name -> what it is, see `encoders.load_source`; the order is that of the tables.
    fractions: parts of the training patients that are labelled, each drawn `draws` times (1.0 once).
    on: the split that is scored; choose a recipe on val, and report test.
    reference: the encoder that differences are taken to, the first by default.  replicates, level: of the bootstrap.
    device: that embeds films.  synthetic: the films were generated, and every page says so.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    encoders: dict[str, str]
    tasks: dict[str, TaskSpec]
    fractions: tuple[float, ...] = FRACTIONS
    draws: int = 10
    on: Literal["test", "val"] = "test"
    seed: int = 0
    reference: str = ""
    replicates: int = 2000  # with six fractions and four encoders, Holm makes of 1,000 no p below 0.05
    level: float = 0.95
    device: str = "cpu"
    synthetic: bool = False


@dataclass(frozen=True)
class SuitePreset:
    """A suite without films: the encoders that are known by name, those that have to be given, and the subsets."""

    encoders: dict[str, str]
    given: tuple[str, ...] = field(default=())
    fractions: tuple[float, ...] = FRACTIONS
    draws: int = 10
    reference: str = ""


def paper() -> SuitePreset:
    """Compare as the paper does: from scratch, from ImageNet, from CheSS and from ours, on 1 % and on all labels."""
    return SuitePreset(
        encoders={"scratch": "random", "ImageNet": "imagenet", "CheSS": "", "ours": ""},
        given=("CheSS", "ours"),
        fractions=(0.01, 1.0),
        reference="ours",
    )


SUITES: dict[str, Callable[[], SuitePreset]] = {"paper": paper}


def read_suite(path: Path) -> Suite:
    """Read a suite from a TOML file; stores and encoder folders are meant relative to it.

    Raises UsageError, naming the first entry that is unknown or does not fit.
    """
    try:
        described = tomllib.loads(path.read_text("utf-8"))
        text = json.dumps(described)
    except OSError as error:
        presets = ", ".join(SUITES)
        raise UsageError(f"{path} cannot be read: {error.strerror}; a suite is a TOML file or {presets}") from None
    except (ValueError, TypeError) as error:  # dates and times are TOML, but no values of a suite
        raise UsageError(f"{path}: {error}") from None
    try:
        suite = TypeAdapter(Suite).validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{path}: {place}: {_say_problem(first)}") from None
    return check_suite(_anchor(suite, path.parent), str(path))


def build_suite(preset: str, stores: Mapping[str, str], encoders: Mapping[str, str]) -> Suite:
    """Build the suite of a preset for some stores, with all of their labels, and the encoders that it leaves open.

    Raises UsageError for an unknown preset, and where an encoder or any store is missing.
    """
    if preset not in SUITES:
        raise UsageError(f"there is no suite {preset!r}; name a TOML file or one of {', '.join(SUITES)}")
    plan = SUITES[preset]()
    named = {name: encoders.get(name, spec) for name, spec in plan.encoders.items()}
    named |= {name: spec for name, spec in encoders.items() if name not in named}
    missing = [name for name in plan.given if not named[name]]
    if missing:
        example = " ".join("CheSS=chess:chess.pth.tar" if name == "CheSS" else f"{name}=FOLDER" for name in missing)
        raise UsageError(f"the suite {preset!r} also compares {', '.join(missing)}; add --encoders {example}")
    if not stores:
        raise UsageError(f"the suite {preset!r} needs films: add --stores films.lance")
    tasks = {name: TaskSpec(store) for name, store in stores.items()}
    suite = Suite(named, tasks, plan.fractions, plan.draws, reference=plan.reference)
    return check_suite(_anchor(suite, Path()), f"the suite {preset!r}")


def describe_suite(suite: Suite) -> dict[str, Any]:
    """Return a suite as plain JSON values."""
    described: dict[str, Any] = json.loads(json.dumps(asdict(suite)))
    return described


def check_suite(suite: Suite, place: str) -> Suite:
    """Return the suite with its reference filled in, or raise UsageError that says what in `place` is wrong."""
    suite = replace(suite, reference=suite.reference or next(iter(suite.encoders), ""))
    for what, names in (("encoders", suite.encoders), ("tasks", suite.tasks)):
        if not names:
            raise UsageError(f"{place}: {what}: name at least one")
        for name in names:
            if not _NAME.fullmatch(name):
                raise UsageError(f"{place}: {what}: {name!r} should be letters, digits, spaces and . _ + - only")
    problem = _find_problem(suite)
    if problem:
        raise UsageError(f"{place}: {problem}")
    return suite


def anchor_encoder(spec: str, folder: Path) -> str:
    """Return the spec with its paths, if any, made absolute; they are meant relative to `folder`."""
    kind, found, rest = spec.partition(":")
    if kind == "chess" and found:
        return f"chess:{folder / rest}"
    named = not spec or spec in RELATIVE or (found and kind in EXAMPLES)
    published = not (folder / spec).exists() and locate_encoder(spec) != spec
    return spec if named or published else str(folder / spec)


def _find_problem(suite: Suite) -> str:
    if suite.reference not in suite.encoders:
        return f"reference: {suite.reference!r} is none of the encoders {', '.join(suite.encoders)}"
    for what, least in (("draws", 1), ("replicates", 1), ("seed", 0)):
        if getattr(suite, what) < least:
            return f"{what}: must be {least} or more"
    if not 0.0 < suite.level < 1.0:
        return "level: lies between 0 and 1"
    if problem := _find_wrong_subset(suite.fractions, ()):
        return problem
    for name, task in suite.tasks.items():
        fractions = suite.fractions if task.fractions is None else task.fractions
        if problem := _find_wrong_subset(fractions, task.film_counts):
            return f"tasks.{name}.{problem}"
        if not (fractions or task.film_counts or task.first_draw):
            return f"tasks.{name}.fractions: there is no label subset"
        if not task.heads or len(set(task.heads)) < len(task.heads):
            return f"tasks.{name}.heads: name each head once, at least one"
    return ""


def _find_wrong_subset(fractions: tuple[float, ...], film_counts: tuple[int, ...]) -> str:
    if wrong := [fraction for fraction in fractions if not 0.0 < fraction <= 1.0]:
        return f"fractions: {wrong[0]:g} does not lie above 0 and at most at 1 (5 % is 0.05)"
    if wrong_counts := [films for films in film_counts if films < 1]:
        return f"film_counts: {wrong_counts[0]} is no number of films"
    if len(set(fractions)) < len(fractions) or len(set(film_counts)) < len(film_counts):
        return "fractions: the same label subset stands there twice"
    return ""


def _say_problem(error: Any) -> str:
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return "there is no such entry"
    return str(error["msg"])


def _anchor(suite: Suite, folder: Path) -> Suite:
    """Make paths absolute that are meant relative to `folder`."""
    here = folder.absolute()
    tasks = {
        name: task if is_url(task.store) else replace(task, store=str(here / task.store))
        for name, task in suite.tasks.items()
    }
    encoders = {name: anchor_encoder(spec, here) for name, spec in suite.encoders.items()}
    return replace(suite, encoders=encoders, tasks=tasks)
