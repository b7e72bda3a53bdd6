"""`brise act` is for models that move robots: rows to train on, missions to fly, and how well deadlines are kept."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from brise import settings
from brise.cli import chat_options, data_options, number_types, terminal
from brise.cli.command_parser import examples
from brise.cli.progress_bar import TerminalWatcher
from brise.errors import UnsupportedError
from brise.report import console, html
from brise.robots import act_bench, babyai_task, camera_encoder, gate_task, jitter
from brise.robots.act_bench import ActBenchOptions
from brise.robots.acting_server import ServerAddress
from brise.robots.babyai_task import WalkOptions
from brise.robots.baselines import RowsPolicy
from brise.robots.camera_encoder import CameraModelOptions
from brise.robots.gate_task import FlyOptions, RowsOptions
from brise.stats.intervals import Interval
from brise.tune.vision_encoder import EncoderOptions


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "act", help="train, fly and measure models that move robots", allow_abbrev=False,
        description="Work with models that move robots. docs/guides/robots.md has the rest.",
        epilog=examples("brise act bench http://127.0.0.1:8080 --model drone --seconds 60 --chats 1"))
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add_task(actions)
    _add_walk(actions)
    _add_camera(actions)
    bench = actions.add_parser(
        "bench", help="ask a server as a control loop does, and report how late it was", allow_abbrev=False,
        description="Ask a server for actions at the rate of a control loop, and report how late its answers and the "
                    "loop's own ticks were, with an interval for the share of seconds that had a miss. It is soft real "
                    "time, and not safety-rated.",
        epilog=examples("brise act bench http://127.0.0.1:8080 --model drone --deadline-ms 80 --html jitter.html"))
    bench.add_argument("server", metavar="URL", help="the address of a brise server")
    bench.add_argument("--model", metavar="NAME", required=True, help="an adapter that `brise tune --actions` made")
    bench.add_argument("--seconds", metavar="S", type=number_types.seconds, default=60.0, help="how long (default: 60)")
    bench.add_argument("--period-ms", metavar="MS", type=number_types.milliseconds,
                       help="from one tick to the next (default: that of the action space)")
    bench.add_argument("--deadline-ms", metavar="MS", type=number_types.milliseconds, default=100.0,
                       help="what an answer may take (default: 100)")
    bench.add_argument("--observations", metavar="FILE", type=Path,
                       help="JSON lines with 'messages' to ask (default: those of the simulated drone)")
    bench.add_argument("--chats", metavar="N", type=number_types.clients, default=0,
                       help="clients that chat with the server at the same time (default: 0)")
    bench.add_argument("--real-time", action="store_true", help="run the loop as SCHED_FIFO, where that is allowed")
    _add_key(bench)
    bench.add_argument("--log", metavar="FILE", type=Path, help="write what came in and what was sent (default: none)")
    bench.add_argument("--html", metavar="FILE", type=Path, help="write the report as a page, too")
    bench.add_argument("--json", action="store_true", help="print a JSON object")


def run(args: argparse.Namespace) -> int:
    match args.action:
        case "rows":
            return _rows(args)
        case "fly":
            return _fly(args)
        case "walk":
            return _walk(args)
        case "camera":
            return _camera(args)
    return _bench(args)


def _add_task(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    rows = actions.add_parser(
        "rows", help="write rows of the simulated drone to train on", allow_abbrev=False,
        description="Fly the gate course and write what was seen, and what the expert would do there, as rows for "
                    "brise tune; beside them the file of the action space. With --server, a policy flies and the "
                    "expert labels (DAgger).",
        epilog=examples("brise act rows drone.jsonl --episodes 20",
                        "brise act rows round-2.jsonl --server http://127.0.0.1:8080 --model drone --seed 2"))
    rows.add_argument("out", metavar="FILE", type=Path, help="the rows; the action space goes to FILE with .toml")
    rows.add_argument("--episodes", metavar="N", type=chat_options.count, default=100, help="flights (default: 100)")
    rows.add_argument("--every", metavar="N", type=chat_options.count, default=6,
                      help="one tick of so many becomes a row, and each after a gate (default: 6)")
    rows.add_argument("--states", metavar="N", type=data_options.seed, default=6000,
                      help="rows of places anywhere in a mission (default: 6000)")
    fly = actions.add_parser(
        "fly", help="fly missions of the simulated drone, and count how they end", allow_abbrev=False,
        description="Fly missions of the gate course that no training row had, by a server's model, by the expert, by "
                    "a controller that does not read the mission, or by what learns from rows without a language "
                    "model (with 'brise[eval]'); the episode is the unit of the interval.",
        epilog=examples("brise act fly --server http://127.0.0.1:8080 --model drone --split template",
                        "brise act fly --expert --episodes 20"))
    fly.add_argument("--episodes", metavar="N", type=chat_options.count, default=300, help="flights (default: 300)")
    fly.add_argument("--split", choices=("train", "combination", "template"), default="combination",
                     help="which missions: those of training, unseen combinations of gates, or unseen sentences "
                          "(default: combination)")
    fly.add_argument("--expert", action="store_true", help="the expert flies, which knows what the mission means")
    fly.add_argument("--without-words", action="store_true", help="a controller flies that does not read the mission")
    fly.add_argument("--linear", metavar="ROWS", type=Path,
                     help="TF-IDF and a linear model fly, trained on these rows (default: none)")
    fly.add_argument("--nearest", metavar="ROWS", type=Path,
                     help="the row with the most similar text, by TF-IDF, says what to do (default: none)")
    fly.add_argument("--physics", choices=("own", "mujoco"), default="own",
                     help="what moves the drone: brise's own quadrotor, or MuJoCo (extra `sim`) (default: own)")
    fly.add_argument("--json", action="store_true", help="print a JSON object")
    for parser, seed in ((rows, 0), (fly, 1)):
        parser.add_argument("--camera", action="store_true",
                            help="pictures of four cameras in place of the text that says where the gates are; the "
                                 "model must be one that sees")
        _add_server(parser, "the adapter there that flies")
        parser.add_argument("--seed", metavar="N", type=data_options.seed, default=seed,
                            help=f"which courses and missions (default: {seed})")


def _add_server(parser: argparse.ArgumentParser, model: str) -> None:
    """The options of a server that decides, which `_address` reads."""
    parser.add_argument("--server", metavar="URL", help="the address of a brise server (default: none)")
    parser.add_argument("--model", metavar="NAME", help=f"{model} (default: none)")
    _add_key(parser)


def _add_key(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--key-env", metavar="VARIABLE", help="environment variable with the server's key "
                                                              "(default: none)")


def _add_walk(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    walk = actions.add_parser(
        "walk", help="walk missions of BabyAI's levels, and count how they end", allow_abbrev=False,
        description="Walk missions of three of BabyAI's levels, with a server's model or with BabyAI's own bot; the "
                    "episode is the unit of the intervals. With --rows, the missions are for training: the bot says "
                    "what is right at each step, whoever walks (DAgger). Needs the extra `sim`.",
        epilog=examples("brise act walk --server http://127.0.0.1:8080 --model babyai",
                        "brise act walk --expert --episodes 6 --rows babyai.jsonl"))
    _add_server(walk, "the adapter there that walks")
    walk.add_argument("--expert", action="store_true", help="the bot walks")
    walk.add_argument("--episodes", metavar="N", type=chat_options.count, default=300, help="walks (default: 300)")
    walk.add_argument("--seed", metavar="N", type=data_options.seed, default=0, help="which missions (default: 0)")
    walk.add_argument("--temperature", metavar="T", type=number_types.temperature, default=0.0,
                      help="0: the likeliest action (default: 0)")
    walk.add_argument("--max-steps", metavar="N", type=chat_options.count,
                      help="end a walk after so many steps (default: as many as the level allows)")
    walk.add_argument("--rows", metavar="FILE", type=Path,
                      help="write rows to train on; the action space goes to FILE with .toml (default: none)")
    walk.add_argument("--every", metavar="N", type=chat_options.count, default=8,
                      help="with --rows: each step in a room becomes a row, and one of so many in a maze (default: 8)")
    walk.add_argument("--json", action="store_true", help="print a JSON object")


def _add_camera(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    camera = actions.add_parser(
        "camera", help="make a model that sees the gate course, of one that reads", allow_abbrev=False,
        description="Train a small vision encoder on pictures of the gate course, so that a picture's rows become the "
                    "text model's own embeddings of the words for it, and write the model with the encoder beside it. "
                    "The text model stays as it is: adapters that were trained on words fly by pictures, and brise "
                    "tune trains them on rows with pictures. Needs the extra `tune`.",
        epilog=examples("brise act camera seeing --model smollm2 --steps 400"))
    camera.add_argument("out", metavar="FOLDER", type=Path, help="the folder to write")
    camera.add_argument("--model", metavar="MODEL", default="smollm2",
                        help="a name of the store, or a .gguf file, of a text model (default: smollm2)")
    camera.add_argument("--steps", metavar="N", type=chat_options.count, default=1000,
                        help="steps of 64 pictures (default: 1000)")
    camera.add_argument("--threads", metavar="N", type=chat_options.count, help="threads (default: one a core)")
    camera.add_argument("--seed", metavar="N", type=data_options.seed, default=0, help="which pictures (default: 0)")
    camera.add_argument("--json", action="store_true", help="print a JSON object")


def _rows(args: argparse.Namespace) -> int:
    count = gate_task.write_rows(RowsOptions(args.out, args.episodes, args.every, args.states, args.seed,
                                              _address(args), args.camera))
    space = args.out.with_suffix(".toml")
    terminal.result(f"{count} rows in {args.out}, the action space in {space}")
    terminal.note(f"train:  brise tune {args.out} --model smollm2 --actions {space}")
    return 0


def _fly(args: argparse.Namespace) -> int:
    report = gate_task.fly(FlyOptions(_flyer(args), args.episodes, args.split, args.seed, args.physics,
                                      args.camera))
    if args.json:
        terminal.result(json.dumps(asdict(report), indent=1, allow_nan=False))
        return 0
    share = report.success
    ended = ", ".join(f"{count} {name}" for name, count in sorted(report.endings.items(), key=lambda item: -item[1]))
    terminal.result(f"{report.episodes} missions ({report.split}): {share.estimate:.1%} done "
                    f"({share.low:.1%} to {share.high:.1%}), {report.mean_s:.1f} s on average\n{ended}")
    for template, (done, count) in sorted(report.templates.items(), key=lambda item: item[1][0] / item[1][1]):
        terminal.result(f"{done:>4} of {count:<4} {template}")
    return 0


def _flyer(args: argparse.Namespace) -> ServerAddress | RowsPolicy | Literal["expert", "without words"]:
    """Who flies: exactly one must be given."""
    flyers: list[ServerAddress | RowsPolicy | Literal["expert", "without words"]] = []
    if (address := _address(args)) is not None:
        flyers.append(address)
    if args.expert:
        flyers.append("expert")
    if args.without_words:
        flyers.append("without words")
    if args.linear is not None:
        flyers.append(RowsPolicy("linear", args.linear))
    if args.nearest is not None:
        flyers.append(RowsPolicy("nearest", args.nearest))
    if len(flyers) != 1:
        raise UnsupportedError("one of --server with --model, --expert, --without-words, --linear and --nearest must "
                               "be given")
    return flyers[0]


def _walk(args: argparse.Namespace) -> int:
    address = _address(args)
    if (address is not None) + args.expert != 1:
        raise UnsupportedError("one of --server with --model, and --expert must be given")
    report = babyai_task.walk(WalkOptions(address, args.episodes, args.seed, args.temperature, args.max_steps,
                                          args.rows, args.every))
    if args.json:
        terminal.result(json.dumps(asdict(report), indent=1, allow_nan=False))
        return 0
    lines = [f"{report.episodes} missions: {_share(report.success)} done, {report.mean_steps:.1f} steps on average"]
    lines += [f"{level}: {_share(share)}" for level, share in report.levels.items()]
    if args.rows is not None:
        lines.append(f"{report.num_rows} rows in {args.rows}, the action space in {args.rows.with_suffix('.toml')}")
    terminal.result("\n".join(lines))
    return 0


def _camera(args: argparse.Namespace) -> int:
    options = EncoderOptions(steps=args.steps, seed=args.seed, threads=args.threads)
    made = camera_encoder.make(CameraModelOptions(args.out, args.model, options), TerminalWatcher())
    if args.json:
        terminal.result(json.dumps({**asdict(made), "path": str(made.path)}, indent=1, allow_nan=False))
    else:
        terminal.result(f"{made.path}: of {made.gates} gates in new pictures, {made.right:.1%} are told where they "
                        f"are; of sectors without a gate, {made.empty:.1%} are told as empty")
    return 0


def _share(share: Interval) -> str:
    return f"{share.estimate:.1%} ({share.low:.1%} to {share.high:.1%})"


def _address(args: argparse.Namespace) -> ServerAddress | None:
    if args.server is None and args.model is None:
        return None
    if args.server is None or args.model is None:
        raise UnsupportedError("--server and --model belong together")
    return ServerAddress(args.server, args.model, None if args.key_env is None else settings.secret(args.key_env))


def _bench(args: argparse.Namespace) -> int:
    key = None if args.key_env is None else settings.secret(args.key_env)
    report = act_bench.run(ActBenchOptions(
        ServerAddress(args.server, args.model, key), args.seconds,
        None if args.period_ms is None else args.period_ms / 1e3, args.deadline_ms / 1e3, args.observations, args.chats,
        args.real_time, args.log))
    if args.html is not None:
        html.write(args.html, html.page(jitter.document(report)))
    if args.json:
        terminal.result(json.dumps(report.as_json(), indent=1, allow_nan=False))
    else:
        console.show(jitter.document(report))
    return 0
