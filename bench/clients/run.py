"""Runs client libraries against a local model and through the gateway, and writes docs/clients.md.

python bench/clients/run.py [--only NAME ...] [--cache FOLDER] [--model smollm2]
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from install import command, install, versions
from servers import CONTEXT, KEY, Servers, running
from table import CLIENTS, HERE, Client

import page

RESULTS = HERE / "results.json"
LONGEST_S = 900


def main() -> int:
    options = _options()
    chosen = [client for client in CLIENTS if not options.only or client.name in options.only]
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    folder = options.record or Path(tempfile.mkdtemp(prefix="clients-"))
    folder.mkdir(parents=True, exist_ok=True)
    with running(options.model, folder) as servers:
        for client in chosen:
            place = install(client, options.cache)
            results[client.name] = {
                "date": datetime.date.today().isoformat(), "versions": versions(client, place),
                "cells": [cell for target in options.target for cell in cells(client, place, target, servers)]}
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    page.write(results)
    failed = page.unexplained(results)
    print(*failed, sep="\n")
    return 1 if failed else 0


def cells(client: Client, place: Path, target: str, servers: Servers) -> list[dict[str, object]]:
    """What the client's script says about each cell, against one of the two servers."""
    url = servers.local if target == "local" else servers.gateway
    environment = {**os.environ, "CELLS_URL": url, "CELLS_METRICS_URL": servers.metrics, "CELLS_MODEL": "local",
                   "CELLS_KEY": KEY, "CELLS_TOO_LONG": str(CONTEXT + 800), "PYTHONWARNINGS": "ignore",
                   "OPENAI_API_KEY": KEY, "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(command(client, place), env=environment, cwd=place, capture_output=True, text=True,
                          timeout=LONGEST_S)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"api"')]
    for line in lines:
        if line["result"] == "fails":
            print(f"{client.name} {target} {line['api']} {line['cell']}: {line['detail']}", file=sys.stderr)
    if not lines:
        print(f"{client.name} {target}: no cells\n{done.stderr[-2000:]}", file=sys.stderr)
    return [{"target": target, **{key: line[key] for key in ("api", "cell", "result", "detail")}} for line in lines]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="*", help="names of clients (default: all)")
    parser.add_argument("--target", nargs="*", default=["local", "gateway"])
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "brise-clients")
    parser.add_argument("--record", type=Path, help="a folder for what the clients sent (default: a temporary one)")
    parser.add_argument("--model", default="smollm2")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
