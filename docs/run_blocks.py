"""Run the commands and the Python of README.md and of the pages in docs, as a reader would who copies them.

A fenced block says by its language what becomes of it:

    sh, bash, shell           run by bash, stops at the first command that fails
    python                    run as a script of its own
    console                   lines that begin with "$ " are run, what stands below each is compared with its stdout;
                              "…" stands for anything within a line, a line that is "…" alone for any lines
    text, json, toml, csv …   not run
    none                      an error, as is a block that is indented by four spaces

HTML comments right above a fence, which no rendered page shows, say what a block needs:

    <!-- with: films labels.csv -->               lay these generated things into the page's folder: block_material.py
    <!-- before: mkdir new -->                    run this first, with bash
    <!-- run with: --steps 300 -> --steps 3 -->   run it with small values; both are printed
    <!-- file: suite.toml -->                     write the block to this file, for the blocks that follow
    <!-- within: 0.1 -->                          numbers with a decimal point may differ by so much from those shown
    <!-- in: elsewhere -->                        run it in this sub-folder of the page's folder, which is made
    <!-- needs extra: saliency -->                run only by --with-extras
    <!-- not run: needs a GPU -->                 do not run, for this reason

The blocks of a page are run in their order, in an empty folder of its own.  The environment is that of the Python that
runs this script.  Standard library only.

    python docs/run_blocks.py                     all pages
    python docs/run_blocks.py --page docs/films.md --keep /tmp/blocks
    python docs/run_blocks.py --list
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from block_material import RECIPES

SHELL, PYTHON, CONSOLE = ("sh", "bash", "shell"), ("python",), ("console",)
NOT_RUN = ("text", "json", "toml", "csv", "yaml", "bibtex", "lua")
MARKERS = ("with", "before", "run with", "file", "within", "in", "needs extra", "not run")
RECORDS = "docs/proof/*/**/*.md"  # tables and model cards as commands wrote them
LIMIT_SECONDS = 1200
SHOWN_LINES = 25
BOUNDARY = "end of command 7f3a"  # between the outputs of a console's commands


@dataclass(frozen=True)
class Block:
    """A fenced block, where it stands, and the markers above it as (name, value)."""

    page: str
    line: int
    language: str
    text: str
    markers: tuple[tuple[str, str], ...] = ()

    @property
    def place(self) -> str:
        """Return page:line."""
        return f"{self.page}:{self.line}"

    @property
    def runs(self) -> bool:
        """Return whether there is something to do: a program to run or a file to write."""
        return self.language in SHELL + PYTHON + CONSOLE or bool(self.get("file"))

    def get(self, name: str) -> list[str]:
        """Return the values of all markers of a name."""
        return [value for marker, value in self.markers if marker == name]


@dataclass
class Page:
    """The blocks of a page in their order, and what is wrong with it before anything is run."""

    name: str
    blocks: list[Block] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


# ---------------------------------------------------------------- reading pages


def read_page(root: Path, name: str) -> Page:
    """Read the blocks of a page and check their languages and markers."""
    page = Page(name)
    lines = (root / name).read_text(encoding="utf-8").splitlines()
    markers: list[tuple[str, str]] = []
    outer, after_blank, number = "", True, 0  # outer: the last line that began a paragraph or a list
    while number < len(lines):
        line, start = lines[number], number + 1
        if fence := re.fullmatch(r"( *)(`{3,}|~{3,})\s*([^`]*)", line):
            number = _find_fence_end(lines, number, fence[2])
            text = "\n".join(inner.removeprefix(fence[1]) for inner in lines[start:number])
            block = Block(name, start, (fence[3].split() or [""])[0], text, tuple(markers))
            page.blocks.append(block)
            page.problems += _check_block(block, closed=number < len(lines))
            markers = []
        elif line.lstrip().startswith("<!--"):
            while "-->" not in lines[number] and number + 1 < len(lines):
                number += 1
            comment = "\n".join(lines[start - 1 : number + 1]).strip().removeprefix("<!--").partition("-->")[0]
            keyword, _, value = comment.strip().partition(":")
            markers.append((keyword.strip(), value.strip()))
        elif line.strip():
            page.problems += _check_strays(name, start, markers)
            markers = []
            if re.match(r" {4}|\t", line) and after_blank and not re.match(r"\s*([-*+]|\d+[.)]) ", outer):
                page.problems.append(f"{name}:{start}: an indented block; give it a fence with a language")
            outer = outer if line.startswith(" ") else line
        after_blank = not line.strip()
        number += 1
    page.problems += _check_strays(name, len(lines), markers)
    return page


def _find_fence_end(lines: Sequence[str], start: int, fence: str) -> int:
    """Return the index of the line that closes a fence, or the number of lines where none does."""
    closing = re.compile(rf" *{re.escape(fence[0])}{{{len(fence)},}}\s*")
    return next((n for n in range(start + 1, len(lines)) if closing.fullmatch(lines[n])), len(lines))


def _check_block(block: Block, closed: bool) -> Iterator[str]:
    if not closed or re.search(r"^ *(`{3,}|~{3,})\w", block.text, re.MULTILINE):
        yield f"{block.place}: the fence is not closed before the next one, or the end"
    if not block.language:
        yield f"{block.place}: a block without a language; say what it is, such as sh, console, python or text"
    elif block.language not in SHELL + PYTHON + CONSOLE + NOT_RUN:
        yield f"{block.place}: the language {block.language!r} is not known to {Path(__file__).name}"
    for name, value in block.markers:
        if name not in MARKERS:
            yield f"{block.place}: there is no marker {name!r}; there are {', '.join(MARKERS)}"
        elif not value:
            yield f"{block.place}: the marker {name!r} says nothing; " + (
                "give the reason" if name == "not run" else "give what it is about"
            )
        elif name == "within" and not re.fullmatch(r"\d+(\.\d+)?", value):
            yield f"{block.place}: 'within: {value}' is no number"
        elif name == "run with":
            old, arrow, new = value.partition(" -> ")
            if not arrow or not new or old not in block.text:
                yield f"{block.place}: 'run with: {value}' names nothing that stands in the block; write OLD -> NEW"
        elif name == "with":
            for unknown in sorted(set(value.split()) - set(RECIPES)):
                yield f"{block.place}: {unknown} is not in block_material.py"


def _check_strays(name: str, line: int, markers: Sequence[tuple[str, str]]) -> Iterator[str]:
    for marker, _ in markers:
        if marker in MARKERS:
            yield f"{name}:{line}: the marker {marker!r} stands above no block"


def list_pages(root: Path) -> list[str]:
    """List README.md and the pages of docs, but for the records that commands wrote."""
    records = set(root.glob(RECORDS))
    pages = [page for page in sorted((root / "docs").rglob("*.md")) if page not in records]
    return [page.relative_to(root).as_posix() for page in [root / "README.md", *pages] if page.is_file()]


# ---------------------------------------------------------------- running


@dataclass(frozen=True)
class Outcome:
    """How a block went: `fault` is empty where it went well."""

    fault: str
    output: str
    seconds: float
    cpu_seconds: float = 0.0

    @property
    def cost(self) -> str:
        """Return the seconds, and those of CPU, as text."""
        return f"{self.seconds:6.1f} s {self.cpu_seconds:6.1f} s CPU"


@dataclass
class Bench:
    """The folders that blocks are run in: material made once, one folder a page, a home."""

    root: Path
    material_lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        for name in ("material", "pages", "home", "scripts"):
            (self.root / name).mkdir(parents=True, exist_ok=True)

    def run_block(self, block: Block) -> Outcome:
        """Lay out what a block needs, run it, and judge what it did."""
        page = block.page.replace("/", "_").removesuffix(".md")
        folder = Path(self.root, "pages", page, *block.get("in"))
        folder.mkdir(parents=True, exist_ok=True)
        for name in " ".join(block.get("with")).split():
            if made := self.make(name):
                return made
            _copy(self.root / "material" / name, folder / name)
        for command in block.get("before"):
            done = self.call(["bash", "-euo", "pipefail", "-c", command], folder)
            if done.fault:
                return Outcome(f"before: {done.fault}", done.output, done.seconds)
        text = substitute(block)
        for name in block.get("file"):
            (folder / name).write_text(f"{text}\n", encoding="utf-8")
            return Outcome("", "", 0.0)
        if block.language in CONSOLE:
            return self.run_console(text, folder, float((block.get("within") or ["0"])[0]))
        if block.language in SHELL:
            return self.call(["bash", "-euo", "pipefail", "-c", text], folder)
        script = self.root / "scripts" / f"{page}_{block.line}.py"
        script.write_text(text, encoding="utf-8")
        return self.call([sys.executable, str(script)], folder)

    def make(self, name: str) -> Outcome | None:
        """Make a piece of material unless it is there; return how it went where that was not well."""
        with self.material_lock:
            return self._make(name)

    def _make(self, name: str) -> Outcome | None:
        folder = self.root / "material"
        if (folder / name).exists():
            return None
        for needed in RECIPES[name].needs:
            if failed := self.make(needed):
                return failed
        done = self.call(["bash", "-euo", "pipefail", "-c", RECIPES[name].command], folder)
        if done.fault or not (folder / name).exists():
            return Outcome(f"material {name}: {done.fault or 'not made'}", done.output, done.seconds)
        print(f"{'material ' + name:<34} {done.cost}", flush=True)
        return None

    def run_console(self, text: str, folder: Path, within: float) -> Outcome:
        """Run the commands of a console one after the other in one shell, and compare their outputs."""
        commands = split_console(text)
        lines = [f"{command}\ncode=$?; printf '\\n{BOUNDARY} %s\\n' $code; (exit $code)" for command, _ in commands]
        done = self.call(["bash", "-uo", "pipefail", "-c", "\n".join([*lines, "true"])], folder, apart=True)
        parts = re.split(rf"\n{BOUNDARY} (\d+)\n", done.output)
        faults = [done.fault] if done.fault else []
        for number, (command, expected) in enumerate(commands):
            if 2 * number + 1 >= len(parts):
                faults.append(f"$ {command}: the shell ended before it")
                break
            output, code = parts[2 * number], int(parts[2 * number + 1])
            asked = number + 1 < len(commands) and commands[number + 1][0] == "echo $?"
            if code and not asked:
                faults.append(f"$ {command}: exit code {code}")
            if not matches(expected, output, within):
                faults.append(f"$ {command}: prints something else than the page says:\n{output.rstrip()}")
        return Outcome("\n".join(faults), done.output if done.fault else "", done.seconds, done.cpu_seconds)

    def call(self, words: Sequence[str], folder: Path, apart: bool = False) -> Outcome:
        """Run a program; its output is stdout and stderr together, or, apart, stdout with stderr in the fault."""
        started = time.monotonic()
        with (
            tempfile.TemporaryFile("w+", errors="replace") as out,
            tempfile.TemporaryFile("w+", errors="replace") as err,
        ):
            child = subprocess.Popen(
                words,
                cwd=folder,
                env=self.build_environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err if apart else out,
                start_new_session=True,
            )
            code, cpu_seconds = wait(child, LIMIT_SECONDS)
            fault = f"exit code {code}" if code else ""
            if time.monotonic() - started >= LIMIT_SECONDS:
                fault = f"longer than {LIMIT_SECONDS} s"
            out.seek(0), err.seek(0)
            output, errors = out.read(), err.read()
        if apart and errors.strip():
            output_of_errors = "\n".join(errors.rstrip().splitlines()[-SHOWN_LINES:])
            fault = f"{fault}\n{output_of_errors}" if fault else ""
        return Outcome(fault, output, time.monotonic() - started, cpu_seconds)

    def build_environment(self) -> dict[str, str]:
        """Return the environment: this Python's commands first, an own home, one thread a process, no downloads."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CHESS_CXR_")}
        bin_folder = str(Path(sys.executable).parent)
        return kept | {
            "PATH": os.pathsep.join([bin_folder, os.environ.get("PATH", "")]),
            "CHESS_CXR_ID_KEY": "generated films of the docs",  # which patients are in which split hangs on it
            "HOME": str(self.root / "home"),
            "XDG_CONFIG_HOME": str(self.root / "home" / ".config"),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "MPLBACKEND": "Agg",
        }


def wait(child: subprocess.Popen[bytes], limit_seconds: float) -> tuple[int, float]:
    """Wait for a process, or kill it; return its exit code and the CPU seconds of it and of those it waited for.

    What it leaves behind in the background is killed too.
    """
    until = time.monotonic() + limit_seconds
    while not (ended := os.wait4(child.pid, os.WNOHANG))[0]:
        if time.monotonic() > until:
            os.killpg(child.pid, signal.SIGKILL)
        time.sleep(0.05)
    _, status, used = ended
    child.returncode = os.waitstatus_to_exitcode(status)  # or Popen would wait for it again
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    return child.returncode, used.ru_utime + used.ru_stime


def _copy(source: Path, target: Path) -> None:
    """Copy material unless it is there already."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy2(source, target)


def substitute(block: Block) -> str:
    """Return the text of a block with its declared small values."""
    text = block.text
    for value in block.get("run with"):
        old, _, new = value.partition(" -> ")
        text = text.replace(old, new)
    return text


def split_console(text: str) -> list[tuple[str, str]]:
    """Split a console into commands, with the lines they are continued on, and the output that stands below each."""
    commands: list[tuple[list[str], list[str]]] = []
    continued = False
    for line in text.splitlines():
        if continued:
            commands[-1][0].append(line)
        elif line.startswith("$ "):
            commands.append(([line[2:]], []))
        elif commands:
            commands[-1][1].append(line)
        continued = bool(commands) and (continued or line.startswith("$ ")) and line.endswith("\\")
    return [("\n".join(command), "\n".join(output)) for command, output in commands]


def matches(expected: str, output: str, within: float = 0.0) -> bool:
    """Return whether an output is as a page shows it, where … stands for anything.

    within: how far numbers with a decimal point may lie from those of the page.
    """
    lines, decimal = expected.strip("\n").splitlines(), r"-?\d+\.\d+"
    patterns = [
        r"(?:[^\n]*\n)*?" if line.strip() == "…" else re.escape(line.rstrip()).replace("…", r"[^\n]*?") + r"[^\S\n]*\n"
        for line in lines
    ]
    shown = re.findall(decimal, expected) if within else []
    if within:
        patterns = [re.sub(r"(?:\\-)?\d+\\\.\d+", lambda _: f"({decimal})", pattern) for pattern in patterns]
    found = re.fullmatch("".join(patterns), output.strip("\n") + "\n" if output.strip("\n") else "")
    return found is not None and all(
        abs(float(ours) - float(theirs)) <= within for ours, theirs in zip(shown, found.groups(), strict=True)
    )


# ---------------------------------------------------------------- the command


def find_reason(block: Block, with_extras: bool) -> str:
    """Return why a block is not run, empty where it is."""
    extras = [] if with_extras else [f"needs the extra {extra}" for extra in block.get("needs extra")]
    return "; ".join([*block.get("not run"), *extras])


def run_pages(pages: Sequence[Page], bench: Bench, with_extras: bool, jobs: int) -> int:
    """Run the blocks of pages, print a line each and a summary; return the number of failed ones."""
    blocks = [block for page in pages for block in page.blocks if block.runs]
    skipped = [(block, reason) for block in blocks if (reason := find_reason(block, with_extras))]

    def run_page(page: Page) -> list[tuple[Block, Outcome]]:
        chosen = [block for block in page.blocks if block.runs and not find_reason(block, with_extras)]
        return [(block, run_and_tell(block, bench)) for block in chosen]

    with ThreadPoolExecutor(jobs) as pool:
        run = [each for page in pool.map(run_page, pages) for each in page]
    failed = [block for block, done in run if done.fault]
    print_skipped(skipped)
    print(f"{len(run)} blocks run, {len(failed)} failed, {len(skipped)} not run")
    for block in failed:
        print(f"failed: {block.place}")
    return len(failed)


def run_and_tell(block: Block, bench: Bench) -> Outcome:
    """Run a block and print how it went, in one piece."""
    done = bench.run_block(block)
    lines = [f"{block.place:<34} {done.cost}  {'FAILED' if done.fault else 'ok'}"]
    lines += [f"    run with: {value}" for value in block.get("run with")]
    if done.fault:
        tail = "\n".join([*done.output.rstrip().splitlines()[-SHOWN_LINES:], done.fault])
        lines += [f"    | {line}" for line in tail.splitlines()]
    print("\n".join(lines), flush=True)
    return done


def print_skipped(skipped: Sequence[tuple[Block, str]]) -> None:
    """Print which blocks were not run, and why."""
    if skipped:
        print("not run:")
    for block, reason in skipped:
        print(f"  {block.place:<32} {' '.join(reason.split())}")


def list_blocks(pages: Sequence[Page], with_extras: bool) -> None:
    """Print every block that can be run, and whether it would be."""
    for block in (block for page in pages for block in page.blocks if block.runs):
        reason = find_reason(block, with_extras)
        print(f"{block.place:<34} {block.language:<8} {'not run: ' + ' '.join(reason.split()) if reason else 'run'}")


def main() -> int:
    """Read the arguments, run, and return the exit code."""
    parser = argparse.ArgumentParser(description="Run the blocks of README.md and docs.")
    parser.add_argument("--page", action="append", default=[], help="only this page, such as docs/films.md")
    parser.add_argument("--list", action="store_true", help="list the blocks and run nothing")
    parser.add_argument("--with-extras", action="store_true", help="run the blocks that need an extra, too")
    parser.add_argument("--only-extras", action="store_true", help="only pages with a block that needs an extra")
    parser.add_argument("--keep", type=Path, help="work in this folder and leave it; material there is used again")
    parser.add_argument("--jobs", type=int, default=1, help="pages at once")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1], help="folder of README.md")
    options = parser.parse_args()
    with_extras = options.with_extras or options.only_extras
    pages = [read_page(options.root, name) for name in options.page or list_pages(options.root)]
    if options.only_extras:
        pages = [page for page in pages if any(block.get("needs extra") for block in page.blocks)]
    problems = [problem for page in pages for problem in page.problems]
    for problem in problems:
        print(problem, file=sys.stderr)
    if options.list:
        list_blocks(pages, with_extras)
        return 1 if problems else 0
    if problems:
        return 1
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="blocks-") as temporary:
        if options.keep:
            shutil.rmtree(options.keep / "pages", ignore_errors=True)
        failed = run_pages(pages, Bench((options.keep or Path(temporary)).resolve()), with_extras, options.jobs)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{time.monotonic() - started:.0f} s, {used.ru_utime + used.ru_stime:.0f} s of CPU")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
