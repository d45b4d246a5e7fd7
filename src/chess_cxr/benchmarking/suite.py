"""What a benchmark compares: encoders by name, tasks, label fractions and draws, read from TOML or a preset."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from pydantic import ConfigDict, TypeAdapter, ValidationError

from chess_cxr.encoders.names import EXAMPLES, locate_encoder
from chess_cxr.files.locations import is_url
from chess_cxr.records import UsageError, choose_problem, word_problem
from chess_cxr.sources.phantom.place import is_phantom

FRACTIONS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
RELATIVE = ("random", "imagenet")  # named without a network: those of the reference's
Head = Literal["linear", "knn", "mlp", "attentive", "attentive8", "full"]
Floor = Literal["metadata", "shuffled", "pixels", "untrained"]
FLOORS: tuple[Floor, ...] = get_args(Floor)
PictureKind = Literal["bones", "nodules"]
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
    counts as.  heads: what is fitted to the encoders, "knn" or modes of `FinetuneConfig`.  fractions, draws: instead of
    the suite's; film_counts: further label subsets, by number of films, one of each patient.  first_draw: a 0/1 column
    of the store that marks the first draw of a subset of its own size.  steps, batch, patience: the budget of heads
    that learn by steps, as in `FinetuneConfig`; every encoder has the same.  encoders: which of the suite's, all by
    default; the reference is among them.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    store: str
    labels: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()
    kind: Literal["multiclass", "multilabel"] | None = None
    uncertain: Literal["ignore", "ones", "zeros"] = "ignore"
    heads: tuple[Head, ...] = ("linear",)
    fractions: tuple[float, ...] | None = None
    draws: int | None = None
    film_counts: tuple[int, ...] = ()
    first_draw: str = ""
    steps: int = 300
    batch: int = 32
    patience: int = 5
    encoders: tuple[str, ...] = ()


@dataclass(frozen=True)
class PictureSpec:
    """One task of a suite whose results are pictures.

    places: folders of pairs or of marked nodules, or phantom:PATIENTS@SIZE#SEED, as in `finetune`.
    val, test: shares of the patients.  options: fields of `BonesConfig` or `NodulesConfig`; the seed is the suite's.
    encoders: which of the suite's, all by default; the reference is among them.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    kind: PictureKind
    places: tuple[str, ...]
    val: float = 0.1
    test: float = 0.2
    options: dict[str, bool | int | float | str] = field(default_factory=dict)
    encoders: tuple[str, ...] = ()


@dataclass(frozen=True)
class Suite:
    """A benchmark, resolved: what is compared, and how.

    encoders: name -> what it is, see `encoders.load_source`; the order is that of the tables.
    fractions: parts of the training patients that are labelled, each drawn `draws` times (1.0 once).
    on: the split that is scored; choose a recipe on val, and report test.
    reference: the encoder that differences are taken to, the first by default.  replicates, level: of the bootstrap.
    device: that embeds films.  synthetic: the films were generated, and every page says so.
    floors: what encoders have to beat, see `floors`.
    audit: whether to ask what embeddings know beside the findings, see `audit`.
    sites: name -> tasks that share labels, each of which is trained on and tested on all of them, see `sites`.
    recipes: name -> encoders that are runs of one pre-training recipe with different seeds, see `recipes`.
    pictures: tasks of the kinds bones and nodules; a file has them among its tasks.
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
    floors: tuple[Floor, ...] = FLOORS
    audit: bool = False
    sites: dict[str, tuple[str, ...]] = field(default_factory=dict)
    recipes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    pictures: dict[str, PictureSpec] = field(default_factory=dict)


@dataclass(frozen=True)
class SuitePreset:
    """A suite without films: the encoders that are known by name, those that have to be given, and the subsets.

    films: what takes the place of stores that are not given.  heads, film_counts: of every task.  full, steps: label
    subsets and budget of the head "full", which has a task of its own.  pairs, nodules: places of bones and nodules.
    """

    encoders: dict[str, str]
    given: tuple[str, ...] = field(default=())
    fractions: tuple[float, ...] = FRACTIONS
    draws: int = 10
    reference: str = ""
    films: dict[str, str] = field(default_factory=dict)
    heads: tuple[Head, ...] = ("linear",)
    film_counts: tuple[int, ...] = ()
    full: tuple[float, ...] = ()
    steps: int = 300
    replicates: int = 2000
    audit: bool = False
    synthetic: bool = False
    pairs: tuple[str, ...] = ()
    nodules: tuple[str, ...] = ()
    bone_options: dict[str, bool | int | float | str] = field(default_factory=dict)
    nodule_options: dict[str, bool | int | float | str] = field(default_factory=dict)


def paper() -> SuitePreset:
    """Compare as the paper does: from scratch, from ImageNet, from CheSS and from ours, on 1 % and on all labels."""
    return SuitePreset(
        encoders={"scratch": "random", "ImageNet": "imagenet", "CheSS": "", "ours": ""},
        given=("CheSS", "ours"),
        fractions=(0.01, 1.0),
        reference="ours",
        full=(0.01, 0.1, 1.0),
        audit=True,
    )


def paper_small() -> SuitePreset:
    """Run all of the paper's table on generated films, within 20 minutes on two cores: to see that it works."""
    return SuitePreset(
        encoders={"scratch": "random", "ImageNet": "size=96:imagenet:tf_efficientnet_lite0", "ours": "cxr-small"},
        fractions=(0.1, 1.0),
        draws=3,
        reference="ours",
        films={"six classes": "phantom:150@128#5"},
        heads=("linear", "knn", "full"),
        film_counts=(24,),
        full=(1.0,),
        steps=40,
        replicates=500,
        audit=True,
        synthetic=True,
        pairs=("phantom:40@96#6",),
        nodules=("phantom:40@128#7",),
        bone_options={"size": 96, "crop": 64, "decoder": "tiny", "steps": 120, "batch": 4},
        nodule_options={"size": 64, "film_size": 128, "width": 8, "steps": 120, "batch": 4},
    )


SUITES: dict[str, Callable[[], SuitePreset]] = {"paper": paper, "paper-small": paper_small}


def read_suite(path: Path) -> Suite:
    """Read a suite from a TOML file; stores and encoder folders are meant relative to it.

    Raises UsageError, naming the first entry that is unknown or does not fit.
    """
    try:
        described = _part_pictures(tomllib.loads(path.read_text("utf-8-sig")))
        text = json.dumps(described)
    except OSError as error:
        presets = ", ".join(SUITES)
        raise UsageError(f"{path} cannot be read: {error.strerror}; a suite is a TOML file or {presets}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text; save it as UTF-8") from None
    except (ValueError, TypeError) as error:  # dates and times are TOML, but no values of a suite
        raise UsageError(f"{path}: {error}") from None
    try:
        suite = TypeAdapter(Suite).validate_json(text)
    except ValidationError as error:
        problems = error.errors()
        kinds = [one for one in problems if one["loc"][-1] == "kind"]  # a kind decides what else belongs
        first = kinds[0] if kinds else choose_problem(problems)
        place = ".".join("tasks" if part == "pictures" else str(part) for part in first["loc"])
        raise UsageError(f"{path}: {place}: {_say_problem(first)}") from None
    return check_suite(_anchor(suite, path.parent), str(path))


def build_suite(
    preset: str,
    stores: Mapping[str, str],
    encoders: Mapping[str, str],
    pairs: Sequence[str] = (),
    nodules: Sequence[str] = (),
    heads: Sequence[Head] = (),
) -> Suite:
    """Build the suite of a preset for some stores, with all of their labels, and the encoders that it leaves open.

    pairs, nodules: places of bone suppression and nodule generation, which are left out without any.
    heads: in place of the preset's; "full" trains all weights, on label subsets of its own.
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
    films = stores or plan.films
    if not films:
        raise UsageError(f"the suite {preset!r} needs films: add --stores films.lance")
    asked = tuple(heads) or plan.heads
    frozen = tuple(head for head in asked if head != "full")
    tasks = {
        name: TaskSpec(store, heads=frozen, film_counts=plan.film_counts) for name, store in films.items() if frozen
    }
    if "full" in asked:
        tasks |= {
            f"{name} full": TaskSpec(store, heads=("full",), fractions=plan.full, steps=plan.steps)
            for name, store in films.items()
        }
    pictures = {
        "bone suppression": PictureSpec("bones", tuple(pairs or plan.pairs), options=plan.bone_options),
        "nodule generation": PictureSpec("nodules", tuple(nodules or plan.nodules), options=plan.nodule_options),
    }
    suite = Suite(
        named, tasks, plan.fractions, plan.draws, reference=plan.reference, replicates=plan.replicates,
        synthetic=plan.synthetic and not stores, audit=plan.audit,
        pictures={name: one for name, one in pictures.items() if one.places},
    )  # fmt: skip
    return check_suite(_anchor(suite, Path()), f"the suite {preset!r}")


def describe_suite(suite: Suite) -> dict[str, Any]:
    """Return a suite as plain JSON values."""
    described: dict[str, Any] = json.loads(json.dumps(asdict(suite)))
    return described


def check_suite(suite: Suite, place: str) -> Suite:
    """Return the suite with its reference filled in, or raise UsageError that says what in `place` is wrong."""
    suite = replace(suite, reference=suite.reference or next(iter(suite.encoders), ""))
    for what, names in (("encoders", suite.encoders), ("tasks", suite.tasks), ("tasks", suite.pictures)):
        if not names and names is not suite.pictures:
            films = " that classifies films" if suite.pictures else ""
            raise UsageError(f"{place}: {what}: name at least one{films}")
        for name in names:
            if not _NAME.fullmatch(name):
                raise UsageError(f"{place}: {what}: {name!r} should be letters, digits, spaces and . _ + - only")
    problem = _find_problem(suite)
    if problem:
        raise UsageError(f"{place}: {problem}")
    return suite


def anchor_encoder(spec: str, folder: Path) -> str:
    """Return the spec with its paths, if any, made absolute; they are meant relative to `folder`."""
    if changed := re.match(r"(?:(?:size|blocks)=\d+:)+", spec):
        return changed[0] + anchor_encoder(spec[changed.end() :], folder)
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
    for name, group in suite.sites.items():
        if len(set(group)) < 2 or len(set(group)) < len(group) or not set(group) <= set(suite.tasks):
            return f"sites.{name}: name two or more of the tasks {', '.join(suite.tasks)}, each once"
    runs = [run for group in suite.recipes.values() for run in group]
    if len(set(runs)) < len(runs) or not set(runs) <= set(suite.encoders) or not all(suite.recipes.values()):
        return f"recipes: name encoders of the suite, each once, out of {', '.join(suite.encoders)}"
    if clash := next((name for name in suite.recipes if name in suite.encoders), ""):
        return f"recipes.{clash}: an encoder has this name"
    chosen = {name: spec.encoders for group in (suite.tasks, suite.pictures) for name, spec in group.items()}
    for name, encoders in chosen.items():
        if problem := _find_wrong_encoder(encoders, suite):
            return f"tasks.{name}.encoders: {problem}"
    for name, one in suite.pictures.items():
        if not one.places or not (one.val >= 0 and one.test > 0 and one.val + one.test < 1):
            return f"tasks.{name}: name places, and shares val and test that leave something to train on"
    for name, task in suite.tasks.items():
        fractions = suite.fractions if task.fractions is None else task.fractions
        if problem := _find_wrong_subset(fractions, task.film_counts):
            return f"tasks.{name}.{problem}"
        if not (fractions or task.film_counts or task.first_draw):
            return f"tasks.{name}.fractions: there is no label subset"
        draws = suite.draws if task.draws is None else task.draws
        if min(draws, task.steps, task.batch) < 1 or task.patience < 0:
            return f"tasks.{name}: draws, steps and batch must be 1 or more, patience 0 or more"
        if not task.heads or len(set(task.heads)) < len(task.heads):
            return f"tasks.{name}.heads: name each head once, at least one"
    return ""


def _find_wrong_encoder(chosen: tuple[str, ...], suite: Suite) -> str:
    if wrong := [name for name in chosen if name not in suite.encoders or chosen.count(name) > 1]:
        return f"{wrong[0]!r}: name encoders of the suite, each once, out of {', '.join(suite.encoders)}"
    if chosen and suite.reference not in chosen:
        return f"{suite.reference!r}, the reference, is missing"
    return ""


def _find_wrong_subset(fractions: tuple[float, ...], film_counts: tuple[int, ...]) -> str:
    if wrong := [fraction for fraction in fractions if not 0.0 < fraction <= 1.0]:
        return f"fractions: {wrong[0]:g} does not lie above 0 and at most at 1 (5 % is 0.05)"
    if wrong_counts := [films for films in film_counts if films < 1]:
        return f"film_counts: {wrong_counts[0]} is no number of films"
    if len(set(fractions)) < len(fractions) or len(set(film_counts)) < len(film_counts):
        return "fractions: the same label subset stands there twice"
    return ""


def _part_pictures(described: dict[str, Any]) -> dict[str, Any]:
    """Take the tasks whose results are pictures out of the tasks of a suite file."""
    tasks = described.get("tasks", {})
    if not isinstance(tasks, dict):
        return described
    kinds = get_args(PictureKind)
    found = {name: one for name, one in tasks.items() if isinstance(one, dict) and one.get("kind") in kinds}
    rest = {name: one for name, one in tasks.items() if name not in found}
    return described | {"tasks": rest, "pictures": found} if found else described


def _say_problem(error: Any) -> str:
    if error["loc"][-1] == "kind":
        return "should be multiclass, multilabel, bones or nodules"
    known = {one.name for kind in (Suite, TaskSpec, PictureSpec) for one in fields(kind)} - {"pictures"}
    return word_problem(error, known)


def _anchor(suite: Suite, folder: Path) -> Suite:
    """Make paths absolute that are meant relative to `folder`."""
    here = folder.absolute()
    tasks = {
        name: task if is_url(task.store) or is_phantom(task.store) else replace(task, store=str(here / task.store))
        for name, task in suite.tasks.items()
    }
    pictures = {
        name: replace(one, places=tuple(place if is_phantom(place) else str(here / place) for place in one.places))
        for name, one in suite.pictures.items()
    }
    encoders = {name: anchor_encoder(spec, here) for name, spec in suite.encoders.items()}
    return replace(suite, encoders=encoders, tasks=tasks, pictures=pictures)
