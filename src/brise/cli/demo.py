"""`brise demo`: the golden path from captured traffic to a switch that survives an outage, on this machine."""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from brise import settings
from brise.checkpoint.store import Store
from brise.cli import demo_show, pull
from brise.demo import size, story
from brise.demo.stages import MODEL
from brise.errors import MissingExtraError, OutputError

PAGES = ("report.html", "proof.html")
SHARED = ("blobs", "folders", "manifests")  # of the model store


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "demo", help="see all of it work on this machine, in minutes", allow_abbrev=False,
        description="The whole path with the small default model and a simulated hosted one: traffic through the "
                    "gateway, tuning, parity, shadow, proof, cascade, switch in steps, an outage, the report. It takes "
                    "up to 15 minutes on two cores, and no network once smollm2 is pulled.",
        epilog="example: brise demo --keep ./demo")
    parser.add_argument("--quick", action="store_true",
                        help="two or three minutes: everything runs, with too little traffic to prove anything")
    parser.add_argument("--keep", metavar="FOLDER", type=Path,
                        help="keep everything there: store, adapter, pages, logs of all commands (default: the pages "
                             "alone, in BRISE_HOME/demo)")


def run(args: argparse.Namespace) -> int:
    if find_spec("torch") is None:
        raise MissingExtraError("torch", "tune", "brise demo")
    home = settings.read().home
    if MODEL not in Store(home).names():  # the one step that needs a network
        pull.run(argparse.Namespace(model=MODEL, name=None))
    with _folder(args.keep) as folder:
        _share_models(home, folder / "home")
        with demo_show.Screen() as screen:
            ended = story.tell(folder, folder / "home", size.QUICK if args.quick else size.FULL, screen)
        pages = _pages(folder, home / "demo") if args.keep is None else [folder / name for name in PAGES]
        demo_show.close(ended, [page for page in pages if page.exists()], args.keep)
    return 0 if all(one.ending != "failed" for one in ended) else 1


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


def _share_models(home: Path, own: Path) -> None:
    """The demo has a home of its own, so that its keys and traffic mix with none of the user's; models are shared."""
    own.mkdir(parents=True)
    for name in SHARED:
        if (home / name).is_dir():
            os.symlink(home / name, own / name)


def _pages(folder: Path, kept: Path) -> list[Path]:
    """What stays when the folder goes."""
    kept.mkdir(parents=True, exist_ok=True)
    for name in PAGES:
        if (folder / name).exists():
            shutil.copyfile(folder / name, kept / name)
    return [kept / name for name in PAGES]
