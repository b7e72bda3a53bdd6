"""What a look leaves behind: a line in the ledger, and for a promotion a signed certificate."""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from brise import settings
from brise.checkpoint import open
from brise.checkpoint.adapters import lineage
from brise.checkpoint.adapters.peft import WEIGHTS_FILE
from brise.cli import terminal
from brise.cli.prove_sources import PairSource
from brise.files.digests import file_digest
from brise.hub.store import ModelStore, locate
from brise.prove import certificates, scoring
from brise.prove.about import About
from brise.prove.prove import Proof
from brise.stats.certificate import CertifiedModel
from brise.text.load import tokens_for
from brise.traffic import seal, stores
from brise.traffic.store import TrafficStore

# Whoever writes these messages otherwise, with another template or tokenizer, is another model.
PROBE = ({"role": "user", "content": "One?"}, {"role": "assistant", "content": "Two."},
         {"role": "user", "content": "Three?"})


def keep(args: argparse.Namespace, found: PairSource, around: About, proof: Proof, store: TrafficStore | None,
         report: Mapping[str, Any], definition: str) -> Path | None:
    """The certificate's file, if there is one. A log without --store leaves one only where --certificate says so."""
    if store is not None:
        certificates.record_look(store, around, proof, definition, report)
    if proof.verdict != "promote" or (store is None and args.certificate is None):
        return None
    home = settings.read().home
    student = None if args.pairs is not None or args.data else found.chosen.pairs[0].small.model
    certificate = certificates.make(
        proof, around, found.chosen.pairs, replace(student_of(args, around.student), fingerprint=around.fingerprint),
        now_s=time.time(), days=args.expires,
        any_context=args.any_context, source_digest=found.source_digest, selection={
            "rung": proof.scored.rung, "score": args.score, "scorer": args.scorer, "figure": args.figure,
            "unit": args.unit, "settle_s": args.settle, "student": student,
            "draw": args.draw or scoring.JUDGED_SHARE})
    signed = certificates.sign(certificate, seal.load_or_create_signing_key(stores.keys_folder(home)))
    path: Path = args.certificate or certificates.place_of(signed, home)
    certificates.write(signed, path)
    if store is not None:
        certificates.record(store, signed, path.absolute())
    terminal.note(f"the certificate is in {path}, good for {args.expires} days")
    return path


def student_of(args: argparse.Namespace, name: str) -> CertifiedModel:
    """Digests of what makes the small model's answers, as far as --model and --adapter say what it is."""
    adapter = None if args.adapter is None else file_digest(args.adapter / WEIGHTS_FILE)
    if args.model is None:
        return CertifiedModel(name, None, adapter)
    located = locate(args.model, ModelStore(settings.read().home))
    if args.adapter is not None:
        lineage.check_base(lineage.read_lineage(args.adapter), located, any_base=args.any_base)
    return CertifiedModel(name, lineage.base_digest(located), adapter, template_digest(located.path))


def template_digest(path: Path) -> str | None:
    """The SHA-256 of a fixed conversation as this model reads it, in tokens; None for a model without a chat format."""
    checkpoint = open.open_checkpoint(path)
    try:
        chat = tokens_for(checkpoint).chat
        return None if chat is None else hashlib.sha256(repr(chat.prompt(PROBE).tokens).encode()).hexdigest()
    finally:
        checkpoint.close()
