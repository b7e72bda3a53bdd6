"""`brise ship` signs a proven model for many devices, and checks what a repository holds."""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from brise import settings
from brise.cli import chat_options, memory_options, terminal
from brise.cli.command_parser import examples
from brise.cli.fill import fill
from brise.cli.fleet_keys import valid_days
from brise.cli.number_types import seconds, share, some
from brise.cli.progress_bar import TerminalWatcher
from brise.errors import UnsupportedError
from brise.fleet.bundle import GateLimits
from brise.fleet.checked import CheckedRepository, CheckOptions, check
from brise.fleet.ship import ShipOptions, Shipped, ship, withdraw
from brise.fleet.shipped_adapter import ParityLimits
from brise.prove import certificates
from brise.quant.recipe import MIXES
from brise.traffic import stores

UNSOUND = 3  # of `brise ship --check`: something does not verify
LIMITS, PARITY = GateLimits(0.05, 0.75), ParityLimits()


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "ship", help="sign a proven model, with what proves it, for many devices", allow_abbrev=False,
        description="Make a bundle of a model, its adapter (in bf16, if that says what the trained one says), the "
                    "certificate and rule of its task, and prompts with the answers that each device must give; sign "
                    "it into a repository of static files, and take that to a folder, a stick or a registry. "
                    "docs/guides/fleet.md has the whole. With --check: say what a repository holds, and whether every "
                    "byte of it verifies (exit status 3 if not).",
        epilog=examples(
            "brise ship smollm2 --name tickets --adapter run/adapter --gate tickets.jsonl --held-out 0.1",
            "brise ship smollm2 --name tickets --adapter run/adapter --gate gate.jsonl --with-base "
            "--to ./stick --valid 90d",
            "brise ship --check ./stick --root root.json",
            "brise ship --withdraw tickets --version 1"))
    parser.add_argument("model", metavar="MODEL", nargs="?",
                        help="the base: a name of the store, a .gguf file, or a folder with safetensors")
    parser.add_argument("--check", metavar="PLACE", nargs="?", const="", dest="place",
                        help="a folder, http(s)://... or oci://... to check (default: this machine's repository)")
    parser.add_argument("--root", metavar="FILE", type=Path,
                        help="with --check: a root.json that you trust (default: this machine's repository's)")
    parser.add_argument("--withdraw", metavar="NAME",
                        help="take bundles of this name out of what is signed: no device begins to install them")
    parser.add_argument("--version", metavar="N", type=chat_options.count, action="append",
                        help="with --withdraw: this version only; may be given several times (default: all)")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    _add_contents(parser)
    _add_plan(parser)
    _add_signing(parser)


def run(args: argparse.Namespace) -> int:
    login = None if args.registry_login_env is None else settings.secret(args.registry_login_env)
    if args.place is not None:
        found = check(CheckOptions(args.place or None, args.root, login, args.authority))
        terminal.result(json.dumps(found.as_json(), indent=1)) if args.json else _show_check(found)
        return 0 if found.is_sound else UNSOUND
    if args.withdraw is not None:
        for target in withdraw(fill(ShipOptions, args, {"model": "", "name": args.withdraw, "gate": Path()}),
                               tuple(args.version or ())):
            terminal.result(target)
        return 0
    if args.model is None or args.name is None or args.gate is None:
        raise UnsupportedError("MODEL, --name and --gate are needed to ship", hint="brise ship --check [PLACE] checks")
    signer = None if args.certificate_key is None else certificates.key_named(
        args.certificate_key, stores.keys_folder(settings.read().home))
    shipped = ship(fill(ShipOptions, args, {
        "signer": signer, "rule": not args.no_rule, "login": login, "authority": args.authority,
        "limits": GateLimits(args.gate_kl, args.gate_same, args.gate_p95),
        "parity": ParityLimits(args.parity_kl, args.parity_logprob)}), TerminalWatcher())
    terminal.result(json.dumps(shipped.as_json(), indent=1)) if args.json else _show(shipped)
    return 0


def _add_contents(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", metavar="NAME", help="the bundle's name; versions count up by themselves")
    parser.add_argument("--adapter", metavar="FOLDER", type=Path, help="an adapter, with its lineage")
    parser.add_argument("--any-base", action="store_true", help="accept an adapter whose lineage names another model")
    parser.add_argument("--gate", metavar="FILE", type=Path,
                        help='prompts that each device must answer as here: JSON lines of {"messages": [...]}, or data '
                             "as for brise tune")
    parser.add_argument("--held-out", metavar="SHARE", type=some,
                        help="of --gate only the rows that tuning with this share held out")
    parser.add_argument("--gate-prompts", metavar="N", type=chat_options.count, default=ShipOptions.gate_prompts,
                        help=f"how many of them (default: {ShipOptions.gate_prompts})")
    parser.add_argument("--gate-tokens", metavar="N", type=chat_options.count, default=ShipOptions.gate_tokens,
                        help=f"longest answer in tokens (default: {ShipOptions.gate_tokens})")
    parser.add_argument("--gate-kl", metavar="NATS", type=float, default=LIMITS.kl,
                        help=f"largest mean divergence of an answer on a device (default: {LIMITS.kl:g})")
    parser.add_argument("--gate-same", metavar="SHARE", type=share, default=LIMITS.same,
                        help=f"least share of answers that are the same (default: {LIMITS.same:g})")
    parser.add_argument("--gate-p95", metavar="SECONDS", type=seconds,
                        help="95 %% of the answers must come in this time on a device (default: any)")
    parser.add_argument("--parity-kl", metavar="NATS", type=float, default=PARITY.kl,
                        help=f"largest mean divergence of the adapter in bf16 (default: {PARITY.kl:g})")
    parser.add_argument("--parity-logprob", metavar="NATS", type=float, default=PARITY.logprob,
                        help="largest difference of a token's log-probability in bf16 (default: "
                             f"{PARITY.logprob:g})")
    parser.add_argument("--certificate", metavar="FILE", type=Path, help="its certificate, of brise prove")
    parser.add_argument("--certificate-key", metavar="KEY",
                        help="the public key that must have signed it (default: this machine's)")
    parser.add_argument("--task", metavar="TASK", help="the task; its newest rule in the store goes along")
    parser.add_argument("--store", metavar="PLACE", help="the store with the rule (default: this machine's)")
    parser.add_argument("--no-rule", action="store_true", help="leave the rule out")
    parser.add_argument("--licence", metavar="NAME", help="the base's licence (default: that of the listed model)")
    parser.add_argument("--rights", metavar="FILE", type=Path,
                        help="rights.toml, which must still allow training on what the adapter was trained on")
    parser.add_argument("--with-base", action="store_true", help="put the base's own files into the bundle, too")


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--memory", metavar="SIZE", type=memory_options.size,
                        help="memory limit on the devices (default: what the plan takes)")
    parser.add_argument("--context", metavar="N", type=chat_options.count, help="context in tokens of each answer")
    parser.add_argument("--parallel", metavar="N", type=chat_options.count, default=ShipOptions.parallel,
                        help=f"answers at one time (default: {ShipOptions.parallel})")
    parser.add_argument("--cache", choices=memory_options.CACHES, default=ShipOptions.cache,
                        help=f"number format of the cache (default: {ShipOptions.cache})")
    parser.add_argument("--weights", choices=tuple(MIXES), metavar="FORMAT",
                        help="quantize weights in plain formats or FP8 while loading: " + ", ".join(MIXES))
    parser.add_argument("--isa", metavar="NAME", help="the instruction set that devices must have, such as avx2")
    parser.add_argument("--threads", metavar="N", type=chat_options.count, help="threads of the kernels here")


def _add_signing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repository", metavar="DIR", type=Path,
                        help="the repository to sign into (default: fleet/repository in BRISE_HOME)")
    parser.add_argument("--keys", metavar="DIR", type=Path,
                        help="the folder with release.key, and maybe hub.key (default: fleet/keys in BRISE_HOME)")
    parser.add_argument("--to", metavar="PLACE", action="append",
                        help="take the repository there afterwards: a folder, a stick, or oci://HOST/NAME; may be "
                             "given several times")
    parser.add_argument("--valid", metavar="DAYS", type=valid_days, default="7d", dest="valid_s",
                        help="how long what is taken there is good, such as 90d for a stick (default: 7d)")
    parser.add_argument("--passphrase-env", metavar="NAME",
                        help="the environment variable with the release key's passphrase")
    parser.add_argument("--registry-login-env", metavar="NAME",
                        help="the environment variable with USER:PASSWORD for the registry")
    parser.add_argument("--authority", metavar="FILE", type=Path,
                        help="a certificate in PEM that a registry's or web server's is signed with, beside the usual "
                             "ones")


def _show(shipped: Shipped) -> None:
    bundle = shipped.bundle
    table = Table(title=terminal.harmless(f"{bundle.name} {bundle.version}"), title_justify="left", show_header=False)
    table.add_row("manifest", bundle.digest)
    table.add_row("size", f"{terminal.size(bundle.nbytes)} in {len(bundle.blobs)} files"
                  + ("" if bundle.base.blobs else f", and the base {terminal.harmless(bundle.base.name)}"))
    if bundle.parity is not None:
        parity = bundle.parity
        table.add_row("bf16", f"KL {parity.kl_mean:.2g} nats a token (at most {parity.kl_max:.2g}), log-probabilities "
                              f"within {parity.logprob_max:.2g}, {parity.same} of {parity.prompts} answers the same")
    table.add_row("plan", f"{terminal.size(bundle.plan.memory)}, context {bundle.plan.context} for each of "
                          f"{bundle.plan.parallel} answers")
    table.add_row("evidence", ", ".join(name for name, found in (
        ("certificate", bundle.certificate), ("rule", bundle.rule), ("lineage", bundle.lineage)) if found) or "none")
    table.add_row("repository", terminal.harmless(", ".join([str(shipped.repository), *shipped.to])))
    console = Console(width=110, highlight=False, markup=False)
    console.print(table)
    for note in shipped.notes:
        terminal.note(f"note: {note}")
    if not shipped.is_offered:
        terminal.note("note: hub.key is not here; the hub makes the bundle known")


def _show_check(found: CheckedRepository) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("bundle", "size", "base", "evidence", "verifies"):
        table.add_column(name, overflow="fold")
    for one in found.bundles:
        bundle = one.bundle
        table.add_row(terminal.harmless(f"{bundle.name} {bundle.version}\n{bundle.digest[:12]}"),
                      terminal.size(bundle.nbytes), terminal.harmless(bundle.base.name),
                      ", ".join(name for name, there in (("certificate", bundle.certificate), ("rule", bundle.rule),
                                                         ("lineage", bundle.lineage)) if there) or "none",
                      terminal.harmless(one.problem or "yes"))
    console = Console(width=110, highlight=False, markup=False)
    console.print(table)
    for each in found.rollouts:
        console.print(terminal.harmless(
            f"roll-out {each.rollout}: {each.bundle[:12]} to {each.share:.1%}, {each.state}"))
    when = datetime.fromtimestamp(found.signed_s, UTC)
    console.print(f"signed {when:%Y-%m-%d %H:%M} UTC; root {found.root_digest}")
    for problem in found.problems:
        terminal.note(f"does not verify: {problem}")
    if found.is_own_root:
        terminal.note("note: the root is the place's own and vouches for nothing; compare its digest with yours, or "
                      "give --root")
