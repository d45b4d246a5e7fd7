"""The command line: parse a command, run it, and report errors in one line.

Results go to stdout, progress and messages to stderr.  Exit codes: 0 done, 1 the work or part of it failed, 2 wrong
use.  Commands check their arguments before they import slow modules.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import functools
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import tyro

from chess_cxr.commands.compare import benchmark, evaluate, merge_benchmarks, write_task_cards
from chess_cxr.commands.demo import demo, doctor
from chess_cxr.commands.encoders import (
    embed,
    export,
    import_weights,
    show_weights,
    write_weights_card,
    write_weights_onnx,
)
from chess_cxr.commands.films import audit, deidentify, ingest
from chess_cxr.commands.generate import generate
from chess_cxr.commands.predict import predict
from chess_cxr.commands.pretrain import compare_runs, plan_run, pretrain, runs, write_run_page
from chess_cxr.commands.search import draw_map, search, select
from chess_cxr.commands.serve import serve
from chess_cxr.records import ChessError, UsageError
from chess_cxr.tasks.table import list_finetune_commands

TRACEBACK_VARIABLE = "CHESS_CXR_TRACEBACK"
INTERRUPTED = 130
COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "doctor": doctor,
    "ingest": ingest,
    "audit": audit,
    "deidentify": deidentify,
    "plan": plan_run,
    "pretrain": pretrain,
    "runs": runs,
    "runs compare": compare_runs,
    "runs page": write_run_page,
    "export": export,
    "weights import": import_weights,
    "weights show": show_weights,
    "weights card": write_weights_card,
    "weights onnx": write_weights_onnx,
    "embed": embed,
    "search": search,
    "map": draw_map,
    "select": select,
    "evaluate": evaluate,
    "benchmark": benchmark,
    "benchmark card": write_task_cards,
    "benchmark merge": merge_benchmarks,
    **list_finetune_commands(),
    "generate": generate,
    "predict": predict,
    "serve": serve,
}
EXAMPLES = ("demo", "ingest", "pretrain")
# What the parser complains of, and how a user is told.
WORDINGS = {
    r"; Argument helptext: .*": "",
    r"Missing value for argument '(\S+)'.*": r"\1 needs a value",
    r"Missing from chess-cxr [a-z ]*: (--\S+)?": r"missing: \1",
    r"^missing: (\S+(?: [A-Z\[][^a-z]*?)?) (?=[a-z])": r"missing: \1: ",
    r"invalid choice '(.*?)' for argument '(\S+)'. Expected one of \((.*?),?\)": r"\2 cannot be '\1'; choose from \3",
    r"Error parsing (\S+): .*?base 10: ('.*?').*": r"\1 must be a whole number, not \2",
    r"Error parsing (\S+): .*?could not convert string to float: ('.*?').*": r"\1 must be a number, not \2",
    r"Error parsing (\S+): ": r"\1: ",
    r"Unrecognized options: (--[^\s,;]+)[^;]*": r"there is no option \1",
    r"Unrecognized options: ([^;]*)": r"too many words: \1",
    r"; (?:Perhaps you meant|Arguments similar to \S+): (--[\w-]+).*": r"; perhaps \1",
}


def render_usage() -> str:
    """Return the main help page: one line per command, and examples to begin with."""
    about = {name: describe(function)[0] for name, function in COMMANDS.items()}
    width = max(map(len, about))
    examples = [describe(COMMANDS[name])[1] for name in EXAMPLES]
    return "\n".join(
        [
            "usage: chess-cxr COMMAND …",
            "",
            "Pre-train a chest X-ray encoder without labels, publish it, and measure what it is worth.",
            "",
            *(f"  {name:{width}}  {line}" for name, line in about.items()),
            "",
            "Begin with:",
            *(f"  {example}" for example in examples),
            "",
            "chess-cxr COMMAND --help explains a command; chess-cxr --version prints the version.",
        ]
    )


def describe(function: Callable[..., None]) -> tuple[str, str]:
    """Return the first sentence of a command's docstring, and its example."""
    text = function.__doc__ or ""
    return text.splitlines()[0].rstrip("."), text.split("Example: ")[1].splitlines()[0]


def parse_command(words: Sequence[str]) -> Callable[[], None]:
    """Parse the words after `chess-cxr` into a function without arguments that runs the command.

    Raises UsageError, in one line, for invalid words; prints the help and raises SystemExit if the words ask for it.
    """
    if not words:
        raise UsageError("name a command; chess-cxr --help lists them")
    length = 2 if " ".join(words[:2]) in COMMANDS else 1
    name = " ".join(words[:length])
    if name not in COMMANDS:
        family = [known for known in COMMANDS if known.startswith(f"{name} ")]
        near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.7)
        advice = f"do you mean {near[0]}?" if near else "chess-cxr --help lists the commands"
        there_are = f"there are {', '.join(family)}" if family else advice
        raise UsageError(f"there is no command {name!r}; {there_are}")
    function = COMMANDS[name]

    @functools.wraps(function)
    def get_ready(*arguments: Any, **options: Any) -> Any:
        return functools.partial(function, *arguments, **options)

    named = [word.partition("=")[0] for word in words if word.startswith("--")]
    if doubled := [word for word in named if named.count(word) > 1]:
        raise UsageError(f"{doubled[0]} is given twice; give it once, followed by all its values")
    markers = (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            call: Callable[[], None] = tyro.cli(
                get_ready, prog=f"chess-cxr {name}", args=list(words[length:]), config=markers
            )
    except SystemExit as stopped:
        if not stopped.code:
            raise
        raise UsageError(f"{word_complaint(complaint.getvalue())}; see chess-cxr {name} --help") from None
    return call


def word_complaint(box: str) -> str:
    """Turn the parser's error message, which is drawn in a box, into one plain line."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", box)
    parts = [""]
    for line in text.splitlines()[1:-1]:
        content = line.strip("│| ").strip()
        if set(content) <= set("─-"):
            parts.append("")
        else:
            parts[-1] = f"{parts[-1]} {content}".strip()
    kept = [re.sub(r" \(required\)", "", part) for part in parts if part and not part.startswith("For full helptext")]
    line = "; ".join(part.rstrip(".:") for part in kept)
    for pattern, wording in WORDINGS.items():
        line = re.sub(pattern, wording, line)
    return line or "the arguments make no sense"


def main() -> None:
    """Run the command line and exit with its code."""
    open_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # file names are bytes and may not be valid text
    code = run(sys.argv[1:])
    if code == INTERRUPTED:
        # threads of the store may still run, and would make a normal shutdown of Python crash
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def open_closed_streams() -> None:
    """Open standard streams that the caller closed (`>&-`): else the next opened file gets their number and output."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115


def run(words: Sequence[str]) -> int:
    """Run a command line and return its exit code; errors become one line on stderr."""
    try:
        if words[:1] in (["--help"], ["-h"], ["help"]):
            print(render_usage())
        elif words[:1] == ["--version"]:
            print(f"chess-cxr {version('chess-cxr')}")
        else:
            parse_command(words)()
        sys.stdout.flush()
        return 0
    except ChessError as error:
        return complain(str(error), error.exit_code)
    except KeyboardInterrupt:
        return complain("interrupted", INTERRUPTED)
    except BrokenPipeError:
        return leave_closed_pipe()
    except Exception as error:
        if os.environ.get(TRACEBACK_VARIABLE) == "1":
            raise
        if was_interrupted(error):
            return complain("interrupted", INTERRUPTED)
        if isinstance(error, OSError) and error.strerror:
            return complain(word_system_error(error), 1)
        first = (str(error).strip().splitlines() or ["no message"])[0]
        if is_out_of_memory(error):
            return complain(f"out of memory: {first}; a smaller batch or size takes less, see chess-cxr plan", 1)
        if "operator torchvision::" in first:
            return complain("torch and torchvision do not fit together; pip install --force-reinstall both at once", 1)
        return complain(f"unexpected {type(error).__name__}: {first}; please report this", 1)


def word_system_error(error: OSError) -> str:
    """Say what the system refused, by the name that the user gave to a file that was being written."""
    named = str(error.filename or "")
    hidden = re.sub(r"(^|/)\.([^/]+?)(\.partial-\d+|\.[0-9a-f]{32}\.partial|\.lock)(/.*)?$", r"\1\2", named)
    if named and (error.errno == errno.EROFS or hidden != named):
        return f"{hidden} cannot be written: {error.strerror}; choose another --out"
    return ": ".join(part for part in (error.strerror, named) if part)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether the error of numpy, OpenCV or torch means that the machine or a GPU ran out of memory."""
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return known or "can't allocate memory" in str(error) or "Insufficient memory" in str(error)


def was_interrupted(error: BaseException | None) -> bool:
    """Return whether an exception arose while Ctrl-C was being handled, such as an error of a cleanup."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def complain(message: str, code: int) -> int:
    """Print one line on stderr and return the exit code."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        leave_closed_pipe()
    print(f"chess-cxr: {' '.join(message.split())}", file=sys.stderr)
    return code


def leave_closed_pipe() -> int:
    """Stay quiet after the reader of the output has closed its pipe; return 1, as the output is incomplete."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
