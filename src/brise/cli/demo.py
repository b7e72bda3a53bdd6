"""`brise demo` goes from captured traffic to a switch that survives an outage, on this machine."""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

import rich.console
import rich.progress
from rich.table import Table
from rich.text import Text

from brise import settings
from brise.cli import pull, terminal
from brise.cli.command_parser import examples
from brise.demo import car_stages, drone_stages, fleet_stages, size, story
from brise.demo.car_stages import CarSize
from brise.demo.child import share_models
from brise.demo.drone_stages import PAGE as DRONE_PAGE
from brise.demo.drone_stages import DroneSize
from brise.demo.stages import MODEL, RemoteSmallModel
from brise.demo.story import Ended, Stage
from brise.errors import MissingExtraError, OutputError, UnsupportedError
from brise.gateway.remote.server import RemoteModel
from brise.hub.store import ModelStore

FLEET_PAGE = "fleet.html"
PAGES = ("report.html", "proof.html", FLEET_PAGE, DRONE_PAGE)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "demo", help="see all of it work on this machine, in minutes", allow_abbrev=False,
        description="See all of it work on this machine, with the small default model and a simulated large one: "
                    "traffic through the gateway, tuning, parity, shadow, proof, cascade, switch in steps, an outage, "
                    "the report. It takes up to 15 minutes on two cores, no network once smollm2 is pulled, and the "
                    "extra tune. docs/guides/demo.md says what is real and what is not.",
        epilog=examples("brise demo",
                        "brise demo --quick --keep ./demo",
                        "brise demo --fleet",
                        "brise demo --car",
                        "brise demo --drone --adapter ./drone-smollm2/adapter",
                        "brise demo --small http://127.0.0.1:8000/v1#tickets"))
    parser.add_argument("--quick", action="store_true",
                        help="two or three minutes: everything runs, with too little traffic to prove anything")
    parser.add_argument("--fleet", action="store_true",
                        help="another story: a hub and five devices on this machine, a good bundle, a bad one, a cut "
                             "cable, a peer; it takes up to 5 minutes and the extras fleet and, at first, tune")
    parser.add_argument("--car", action="store_true",
                        help="another story: an in-car assistant that knows speed, seats and route, several calls for "
                             "one utterance, and rules outside of the model that hold dangerous ones back; up to 10 "
                             "minutes, most of them training")
    parser.add_argument("--drone", action="store_true",
                        help="another story: a simulated drone flies missions in words, its engine stops for 2 s and "
                             "is killed; the vehicle holds, then lands; a page has its paths and how late the loop "
                             "was; 5 minutes with --adapter")
    parser.add_argument("--adapter", metavar="FOLDER", type=Path,
                        help="with --car or --drone, an adapter that an earlier run, or the training in "
                             "docs/guides/robots.md, has made (default: trains one for some minutes)")
    parser.add_argument("--keep", metavar="FOLDER", type=Path,
                        help="keep everything there: store, adapter, pages, logs of all commands (default: the pages "
                             "alone, in BRISE_HOME/demo)")
    parser.add_argument("--small", metavar="URL[#MODEL]",
                        help="the small model behind this server with OpenAI's API, as it is, instead of one that is "
                             "tuned here; MODEL is its name there (default: the only one)")
    parser.add_argument("--small-key-env", metavar="VARIABLE", help="environment variable with the key for it")


def run(args: argparse.Namespace) -> int:
    stories = [name for name in ("fleet", "car", "drone") if vars(args)[name]]
    if args.adapter is not None and not args.car and not args.drone:
        raise UnsupportedError("--adapter is for --car and --drone")
    if stories:
        if len(stories) > 1 or args.quick or args.small is not None or args.small_key_env is not None:
            raise UnsupportedError(f"--{stories[0]} is a story of its own: --quick, --small and other stories do not "
                                   "go with it")
        return _run_fleet(args) if args.fleet else _run_vehicle(args)
    remote = _remote(args)
    if remote is None and find_spec("torch") is None:
        raise MissingExtraError("torch", "tune", "brise demo")
    home = settings.read().home
    if remote is None and MODEL not in ModelStore(home).names():  # the one step that needs a network
        pull.pull_model(MODEL)
    with _folder(args.keep) as folder:
        share_models(home, folder / "home")
        with DemoProgress() as screen:
            ended = story.tell(folder, folder / "home", size.QUICK if args.quick else size.FULL, screen,
                               remote=remote)
        pages = _pages(folder, home / "demo") if args.keep is None else [folder / name for name in PAGES]
        show_ended(ended, [page for page in pages if page.exists() and page.name not in (FLEET_PAGE, DRONE_PAGE)],
                   args.keep)
        terminal.note("The large model was simulated; all other numbers are measured on this machine.")
    return 0 if all(one.ending != "failed" for one in ended) else 1


def _run_fleet(args: argparse.Namespace) -> int:
    """The story of a fleet; its first failure ends it."""
    if find_spec("tuf") is None:
        raise MissingExtraError("tuf", "fleet", "brise demo --fleet")
    home = settings.read().home
    if MODEL not in ModelStore(home).names():
        pull.pull_model(MODEL)
    with _folder(args.keep) as folder:
        share_models(home, folder / "home")
        with DemoProgress() as screen, fleet_stages.opened(folder, folder / "home", home / "demo" / "fleet",
                                                           fleet_stages.FleetSize(), screen) as demo:
            ended = story.run_stages(demo, fleet_stages.FLEET_STAGES, screen, ends_at_failure=True)
        pages = _pages(folder, home / "demo") if args.keep is None else [folder / name for name in PAGES]
        show_ended(ended, [page for page in pages if page.exists() and page.name == FLEET_PAGE], args.keep)
    return 0 if all(one.ending != "failed" for one in ended) else 1


def _run_vehicle(args: argparse.Namespace) -> int:
    """The story of a car or of a drone; its first failure ends it."""
    adapter = None if args.adapter is None else args.adapter.resolve()
    home = settings.read().home
    if MODEL not in ModelStore(home).names():
        pull.pull_model(MODEL)
    with _folder(args.keep) as folder:
        share_models(home, folder / "home")
        with DemoProgress() as screen:
            ended = (_car if args.car else _drone)(folder, screen, adapter)
        pages = _pages(folder, home / "demo") if args.keep is None else [folder / name for name in PAGES]
        show_ended(ended, [page for page in pages if page.exists() and page.name == DRONE_PAGE and args.drone],
                   args.keep)
    return 0 if all(one.ending != "failed" for one in ended) else 1


def _car(folder: Path, screen: DemoProgress, adapter: Path | None) -> list[Ended]:
    with car_stages.opened(folder, folder / "home", CarSize(), screen, adapter) as demo:
        return story.run_stages(demo, car_stages.CAR_STAGES, screen, ends_at_failure=True)


def _drone(folder: Path, screen: DemoProgress, adapter: Path | None) -> list[Ended]:
    with drone_stages.opened(folder, folder / "home", DroneSize(), screen, adapter) as demo:
        return story.run_stages(demo, drone_stages.DRONE_STAGES, screen, ends_at_failure=True)


def _remote(args: argparse.Namespace) -> RemoteSmallModel | None:
    """The small model behind a server, checked before anything is started."""
    if args.small is None:
        if args.small_key_env is not None:
            raise UnsupportedError("--small-key-env is for --small URL")
        return None
    RemoteModel(args.small, key=None if args.small_key_env is None else settings.secret(args.small_key_env))
    return RemoteSmallModel(args.small, args.small_key_env)


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="brise-demo-") as name:
            yield Path(name)
        return
    if keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        raise OutputError(f"{str(keep)!r} is there already, and not an empty folder", hint="give another --keep FOLDER")
    keep.mkdir(parents=True, exist_ok=True)
    yield keep.resolve()


def _pages(folder: Path, kept: Path) -> list[Path]:
    """What stays when the folder goes."""
    kept.mkdir(parents=True, exist_ok=True)
    for name in PAGES:
        if (folder / name).exists():
            shutil.copyfile(folder / name, kept / name)
    return [kept / name for name in PAGES]


WIDTH = 110
LINE_S = 10.0  # between lines of progress where there is no terminal
_SIGNS = (("done", "\u2713", "green"), ("skipped", "-", "yellow"), ("failed", "\u2717", "red"))


class DemoProgress:
    """On a terminal a bar that moves; elsewhere a line now and then."""

    def __init__(self) -> None:
        self._console = rich.console.Console(highlight=False)
        self._bar = rich.progress.Progress(
            rich.progress.SpinnerColumn(), rich.progress.BarColumn(bar_width=28), rich.progress.TaskProgressColumn(),
            rich.progress.TimeElapsedColumn(), rich.progress.TextColumn("{task.description}"), console=self._console,
            transient=True, disable=not self._console.is_terminal)
        self._task: rich.progress.TaskID | None = None
        self._last_s = 0.0

    def __enter__(self) -> DemoProgress:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._bar.stop()

    def begin(self, number: int, of: int, stage: Stage[Any]) -> None:
        """See Teller."""
        self._print(Text(f"\n{number}/{of} {stage.name}: {stage.about}", style="bold"))
        self._task = self._bar.add_task("", total=None)
        self._last_s = time.monotonic()

    def end(self, ended: Ended) -> None:
        """See Teller."""
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None
        sign, style = next((sign, style) for name, sign, style in _SIGNS if name == ended.ending)
        self._print(Text(f"  {sign} {ended.ending} in {ended.seconds:.0f} s" + (f": {ended.why}" if ended.why else ""),
                         style=style))

    def command(self, line: str) -> None:
        """See Show."""
        self._print(Text(f"  $ {line}", style="dim"))

    def progress(self, done: float, total: float, note: str) -> None:
        """See Show."""
        if self._task is not None:
            self._bar.update(self._task, completed=done, total=total, description=note)
        if not self._console.is_terminal and time.monotonic() - self._last_s >= LINE_S:
            self._last_s = time.monotonic()
            self._print(Text(f"  ... {done:.0f} of {total:.0f}, {note}"))

    def say(self, line: str) -> None:
        """See Show."""
        self._print(Text(f"  {line}"))

    def text(self, text: str) -> None:
        """See Show."""
        self._console.out(text, highlight=False)

    def _print(self, text: Text) -> None:
        self._console.print(text, soft_wrap=True)


def show_ended(ended: Sequence[Ended], pages: Sequence[Path], kept: Path | None) -> None:
    """How long each stage took, and where the pages are."""
    table = Table(title="The demo, stage by stage", title_justify="left")
    for name in ("stage", "", "seconds"):
        table.add_column(name, justify="right" if name == "seconds" else "left")
    for one in ended:
        table.add_row(one.name, one.ending, f"{one.seconds:.0f}")
    table.add_row("all", "", f"{sum(one.seconds for one in ended):.0f}")
    rich.console.Console(width=WIDTH, highlight=False).print(table)
    for page in pages:
        terminal.result(f"{page.stem}: {page}")
    if kept is not None:
        terminal.result(f"everything else: {kept.resolve()}")
