"""`brise plan`: the memory that a model takes, from its header alone, and what would fit if it does not."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from brise.cli import chat_options, memory_options, serve_adapters, terminal
from brise.cli.command_parser import examples
from brise.engine.speculation import MOST_DRAFTED
from brise.files.sizes import TwoLimits
from brise.memory import rendering
from brise.memory import serving_plan as plans
from brise.memory.device_share import DeviceShare
from brise.memory.limit import plan_serving
from brise.memory.serving_plan import MemoryRequest, ServingPlan
from brise.memory.suggestions import Suggestion, hint
from brise.models.batch import PAGE_SIZE

BAR_WIDTH = 60
LONGEST_BAR = 76  # with what exceeds the limit
ROW_BAR_WIDTH = 18
SHOWN_KEYS = 40


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "plan", help="say what a model takes in memory", allow_abbrev=False,
        description="Say what a model takes in memory, without reading a byte of its weights: weights by part, cache, "
                    "work space, process; the largest context that fits, and what would fit if it does not. Exit "
                    "status 1 if it does not fit. docs/guides/memory.md says what is in the total, and describes the "
                    "JSON.",
        epilog=examples("brise plan smollm2",
                        "brise plan smollm2 --memory 600MB",
                        "brise plan mine.gguf --memory 2GB --parallel 4 --cache q8 --json"))
    parser.add_argument("model", metavar="MODEL",
                        help="a name from `brise models`, a .gguf file, or a folder with a model")
    memory_options.add_arguments(parser)
    parser.add_argument("--context", metavar="N", type=chat_options.count,
                        help="tokens of a prompt and its answer (default: as many as fit; without --memory "
                             f"{plans.DEFAULT_CONTEXT}, or fewer if the model allows fewer)")
    parser.add_argument("--parallel", metavar="N", type=chat_options.count, default=1,
                        help="answers at one time, each with a full context (default: 1)")
    serve_adapters.add_room_arguments(parser)
    parser.add_argument("--threads", metavar="N", type=chat_options.thread_count,
                        help="threads of the kernels (default: BRISE_THREADS, or one per core)")
    parser.add_argument("--strict", action="store_true",
                        help="refuse a model whose config.json, params.json or GGUF metadata has a key that brise does "
                             "not know")
    parser.add_argument("--json", action="store_true", help="print a JSON object")


def run(args: argparse.Namespace) -> int:
    options = memory_options.from_arguments(args)
    limit, ram = (options.memory.vram, options.memory.ram) if isinstance(options.memory, TwoLimits) else (
        options.memory, None)
    request = MemoryRequest(limit, args.context, args.parallel, options.cache, options.image_size, ram=ram,
                            expert_bytes=options.experts, adapters_bytes=args.adapter_memory or 0,
                            adapter_rank=args.adapter_rank,
                            adapter_slots=args.max_adapters if args.adapter_memory else 0,
                            max_draft=0 if options.speculate == "off" else MOST_DRAFTED)
    planned = plan_serving(args.model, request, weights=options.weights, threads=args.threads, device=options.device)
    if args.strict:
        planned.refuse_unknown()
    if args.json:
        terminal.result(json.dumps(planned.document(), indent=2))
    else:
        console = Console(highlight=False)
        show(planned.plan, planned.suggestions, console)
        if planned.generation.sampling.given:
            console.print(Text(f"sampling, unless a request says otherwise: {planned.generation}"), soft_wrap=True)
        _show_keys("notes", [key.name for key in planned.notes], console)
        _show_keys("unknown keys, taken for notes", [f"{key.name} = {key.shown}" for key in planned.unknown], console)
    return 0 if planned.plan.fits else 1


def show(plan: ServingPlan, suggestions: Sequence[Suggestion], console: Console) -> None:
    """Prints a table and bars. The bar has letters, so that it can be read without colours."""
    rows = plans.terms(plan)
    whole = plan.limit or plan.total_bytes
    console.print(Text(terminal.harmless(plans.headline(plan)), style="bold"))
    console.print(_stacked(rows, whole))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name, justify in (("", "left"), ("part", "left"), ("format", "left"), ("size", "right"), ("share", "left")):
        table.add_column(name, justify="right" if justify == "right" else "left", no_wrap=True)
    for letter, name, kind, nbytes in rows:
        table.add_row(letter, name, kind, rendering.size(nbytes), _bar(nbytes / whole, ROW_BAR_WIDTH))
    console.print(table)
    if plan.device is not None:
        console.print(Text(_on_device(plan, plan.device)), soft_wrap=True)
    console.print(Text(_contexts(plan)))
    if suggestions:
        console.print(Text("what fits:", style="bold"))
        for suggestion in suggestions:
            size = rendering.size(suggestion.total_bytes)
            console.print(Text(f"  {suggestion.text(plan)}  ({size})"), soft_wrap=True)
    elif not plan.fits:
        console.print(Text(hint(suggestions, plan)))


def _show_keys(name: str, keys: Sequence[str], console: Console) -> None:
    """Keys of the model's description that change nothing, on one line."""
    if keys:
        more = f" and {len(keys) - SHOWN_KEYS} more (--json has all)" if len(keys) > SHOWN_KEYS else ""
        console.print(Text(terminal.harmless(f"{name}: {', '.join(keys[:SHOWN_KEYS])}{more}")), soft_wrap=True)


def _on_device(plan: ServingPlan, share: DeviceShare) -> str:
    """How much of the model lies on the device, and what the host holds besides."""
    text = f"layers on the GPU: {share.num_on_device} of {share.num_layers}"
    if plan.image_size is not None:
        text += f", images are encoded on the {'GPU' if plan.encodes_on_device else 'CPU'}"
    terms = share.host_terms(plan.num_pages)
    if not terms:
        return f"{text}; its memory is the host's: the total bounds both"
    parts = ", ".join(f"{term.name} {rendering.size(term.nbytes)}" for term in terms)
    limit = "" if share.host_limit is None else f" of {rendering.size(share.host_limit)}"
    return f"{text}; on the host {rendering.size(share.host_bytes(plan.num_pages))}{limit}: {parts}"


def _contexts(plan: ServingPlan) -> str:
    on_host = 0 if plan.device is None else plan.device.host_cache_page
    per_token = rendering.size((plan.page_bytes + on_host) // PAGE_SIZE)
    each = f" for each of {plan.parallel} answers" if plan.parallel > 1 else ""
    planned = f"context {plan.context}{each}, {per_token} a token in the cache"
    if plan.short_context is not None:
        planned += (f"; LongRoPE's long factors, as it is over {plan.short_context}"
                    if plan.context > plan.short_context else f"; LongRoPE's short factors, up to {plan.short_context}")
    if plan.limit is None:
        return f"{planned}; the model allows {plan.max_context}"
    fitting = f"at most {plan.largest_context} fit" if plan.largest_context else "no context fits"
    return f"{planned}; {fitting}, the model allows {plan.max_context}"


def _stacked(rows: Sequence[tuple[str, str, str, int]], whole: int) -> Text:
    """One bar of letters; what exceeds the limit is drawn to the right of its end."""
    text, done, at = Text("["), 0, 0
    for letter, _, _, nbytes in rows:
        done += nbytes
        end = min(round(done / whole * BAR_WIDTH), LONGEST_BAR)  # a limit of one byte would make billions of cells
        cells = letter * max(end - at, 0)
        inside = cells[:max(BAR_WIDTH - at, 0)]
        text.append(inside)
        if len(inside) < len(cells):
            if at + len(inside) == BAR_WIDTH:
                text.append("]")
            over = end - max(at, BAR_WIDTH)
            text.append(letter * max(over, 0), style="red")
        at = max(at, end)
    if at <= BAR_WIDTH:
        text.append("." * (BAR_WIDTH - at) + "]")
    return text


def _bar(share: float, width: int) -> str:
    block, rest = ("\u2588", "\u00b7") if _has_blocks() else ("#", ".")
    full = min(round(share * width), width)
    return f"{block * full}{rest * (width - full)} {share:4.0%}"


def _has_blocks() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
