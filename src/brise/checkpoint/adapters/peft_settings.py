"""Reads and writes PEFT's adapter_config.json: keys that act, keys that change nothing, and keys that are refused.

A missing key has PEFT's default. The tensors say which matrices are adapted, so no regular expression of the file is
ever run: PEFT has adapted exactly what it wrote. Keys of rank_pattern and alpha_pattern are names, not patterns.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from brise.errors import UnsupportedError
from brise.files.fields import Fields, KeyTable, Plain, errors_of
from brise.files.json_file import read_json
from brise.models.lora import ENDS, LowRanks

CONFIG_FILE = "adapter_config.json"
MAX_RANK = 1024  # examples go up to 256
MAX_PATTERNS = 10_000
MAX_ALPHA = 1e6

_DEFAULTS: Mapping[str, object] = MappingProxyType({"r": 8, "lora_alpha": 8})
_NEUTRAL: Mapping[str, tuple[Plain, ...]] = MappingProxyType({
    "bias": ("none",), "fan_in_fan_out": (False,), "lora_bias": (False,), "use_qalora": (False,),
    "ensure_weight_tying": (False,),
    # The others (pissa, olora, corda, loftq) change the base as well.
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal")})
# How the adapter was made, and settings of other programs.
_NOTES = frozenset({
    "auto_mapping", "corda_config", "eva_config", "exclude_modules", "inference_mode", "loftq_config",
    "megatron_config", "megatron_core", "peft_version", "qalora_group_size", "revision", "runtime_config", "task_type"})
_EMPTY = ("target_parameters", "trainable_token_indices", "layer_replication", "arrow_config",
          "alora_invocation_tokens")
_KEY = re.compile(r"\^?[A-Za-z0-9_.]+")


@dataclass(frozen=True)
class PeftSettings:
    """Scales and ranks of the config. `modules` is None where a regular expression or all-linear names them.

    Patterns are (key, value) in the file's order; the first that matches counts.
    """

    rank: int
    alpha: float
    use_rslora: bool
    use_dora: bool
    dropout: float
    base_name: str
    modules: Sequence[str] | None
    layers: frozenset[int] | None
    has_exclusions: bool
    ranks: Sequence[tuple[str, int]]
    alphas: Sequence[tuple[str, float]]
    saved: Sequence[str] = ()  # modules that are stored whole

    def rank_of(self, module: str) -> int:
        return next((rank for key, rank in self.ranks if _fits(key, module)), self.rank)

    def scale_of(self, module: str) -> float:
        alpha = next((alpha for key, alpha in self.alphas if _fits(key, module)), self.alpha)
        rank = self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def check_modules(self, modules: Mapping[str, str], whole: Collection[str], possible: Mapping[str, str]) -> None:
        """UnsupportedError unless the tensors are those that the config names.

        `modules` maps the paths of the tensors to PEFT's modules, `possible` those of the model to the end of theirs;
        `whole` are the paths of those that are stored whole.
        """
        for path, module in modules.items():
            if not (_ends_in(module, self.saved) if path in whole else self._names(path, module)):
                raise UnsupportedError(f"there are tensors of {module}, which {CONFIG_FILE} does not name",
                                       hint="PEFT would leave them out; correct target_modules or the file")
        for path, name in ((path, name) for name, path in ENDS.items() if name in self.saved and path not in whole):
            raise UnsupportedError(f"{CONFIG_FILE} names {name} in modules_to_save, and there is no whole {path}",
                                   hint="the file is incomplete; save it again")
        if self.modules is None or self.has_exclusions:
            return
        in_layers = (module for path, module in modules.items() if path.startswith("layers."))
        prefix = next(in_layers, "model.").partition("layers.")[0]
        for path, tail in possible.items():
            module = f"{prefix}layers.{path.split('.')[1]}.{tail}" if path.startswith("layers.") else tail
            if path not in modules and self._names(path, module):
                raise UnsupportedError(f"{CONFIG_FILE} names {module}, of which there are no tensors",
                                       hint="the file is incomplete; save it again")

    def _names(self, path: str, module: str) -> bool:
        if self.layers is not None and (not path.startswith("layers.") or int(path.split(".")[1]) not in self.layers):
            return False
        return self.modules is None or _ends_in(module, self.modules)


def read_settings(folder: Path) -> PeftSettings:
    """The config in `folder`; UnsupportedError for what brise does not do, by its name."""
    with errors_of(CONFIG_FILE):
        fields = Fields(read_json(folder / CONFIG_FILE), "", _DEFAULTS)
        kind = fields.text("peft_type")
        if kind != "LORA":
            raise fields.refused("peft_type", "'LORA'")
        for name in _EMPTY:
            if fields.value(name) not in (None, False, [], {}, ""):
                raise fields.refused(name, "null")
        settings = PeftSettings(
            _rank(fields), _alpha(fields, "lora_alpha"), fields.flag("use_rslora", default=False),
            fields.flag("use_dora", default=False), _dropout(fields),
            fields.text("base_model_name_or_path", default=""), _modules(fields), _layers(fields),
            fields.has("exclude_modules"), _ranks(fields), _alphas(fields), _saved(fields))
        fields.refuse_rest(KeyTable(_NEUTRAL, _NOTES))
    return settings


def config_of(low_ranks: LowRanks, modules: Mapping[str, str], *, rank: int, alpha: float, dropout: float,
              use_rslora: bool, base_name: str, target_modules: Sequence[str]) -> Mapping[str, object]:
    """adapter_config.json of these low ranks; `modules` are PEFT's names by path."""
    ranks, alphas = {}, {}
    for path, low_rank in low_ranks.items():
        own = int(low_rank.a.shape[0])
        own_alpha = low_rank.scale * (math.sqrt(own) if use_rslora else own)
        if own != rank:
            ranks[modules[path]] = own
        if not math.isclose(own_alpha, alpha, rel_tol=1e-9):
            alphas[modules[path]] = own_alpha
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base_name or None,
        "inference_mode": True, "r": rank, "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "lora_dropout": dropout, "target_modules": sorted(target_modules), "rank_pattern": ranks,
        "alpha_pattern": alphas, "use_rslora": use_rslora,
        "use_dora": any(low_rank.magnitude is not None for low_rank in low_ranks.values()), "bias": "none",
        "fan_in_fan_out": False, "init_lora_weights": True, "modules_to_save": None, "layers_to_transform": None}


def _rank(fields: Fields) -> int:
    rank = fields.integer("r")
    if rank > MAX_RANK:
        raise fields.wrong("r", f"1 to {MAX_RANK}")
    return rank


def _alpha(fields: Fields, name: str) -> float:
    alpha = fields.number(name)
    if alpha > MAX_ALPHA:
        raise fields.wrong(name, f"up to {MAX_ALPHA:g}")
    return alpha


def _dropout(fields: Fields) -> float:
    """Of training only."""
    dropout = fields.number("lora_dropout", default=0.0, may_be_zero=True)
    if dropout > 1:
        raise fields.wrong("lora_dropout", "0 to 1")
    return dropout


def _modules(fields: Fields) -> Sequence[str] | None:
    """A string is a regular expression, or all-linear."""
    if isinstance(fields.value("target_modules"), str):
        return None
    names = fields.strings("target_modules")
    if not names:
        raise fields.wrong("target_modules", "names of modules")
    if len(names) > MAX_PATTERNS:
        raise fields.wrong("target_modules", f"at most {MAX_PATTERNS} names")
    return names


def _saved(fields: Fields) -> Sequence[str]:
    """modules_to_save: the embedding and the output."""
    if fields.value("modules_to_save") in (None, []):
        return ()
    names = fields.strings("modules_to_save")
    if set(names) - ENDS.keys():
        raise fields.refused("modules_to_save", f"null, or {' and '.join(ENDS)}")
    return tuple(names)


def _ends_in(module: str, names: Sequence[str]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


def _layers(fields: Fields) -> frozenset[int] | None:
    value, pattern = fields.value("layers_to_transform"), fields.value("layers_pattern")
    if pattern not in (None, [], "layers", ["layers"]):
        raise fields.refused("layers_pattern", "'layers'")
    numbers = [value] if type(value) is int else value
    if numbers is None or numbers == []:
        return None
    if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
        raise fields.wrong("layers_to_transform", "a number of a layer, or a list of them")
    return frozenset(numbers)


def _ranks(fields: Fields) -> Sequence[tuple[str, int]]:
    section = _patterns(fields, "rank_pattern")
    out = [(key, section.integer(key)) for key in _keys(fields, "rank_pattern")]
    for key, rank in out:
        if rank > MAX_RANK:
            raise section.wrong(key, f"1 to {MAX_RANK}")
    return out


def _alphas(fields: Fields) -> Sequence[tuple[str, float]]:
    section = _patterns(fields, "alpha_pattern")
    return [(key, _alpha(section, key)) for key in _keys(fields, "alpha_pattern")]


def _patterns(fields: Fields, name: str) -> Fields:
    return fields.section(name) if fields.has(name) else Fields({}, name)


def _keys(fields: Fields, name: str) -> Sequence[str]:
    value = fields.value(name)
    keys = list(value) if isinstance(value, Mapping) else []
    if len(keys) > MAX_PATTERNS:
        raise fields.wrong(name, f"at most {MAX_PATTERNS} names")
    for key in keys:
        if not _KEY.fullmatch(key):
            raise UnsupportedError(f"{name} has the key {key[:100]!r}; allowed are names of modules, such as q_proj or "
                                   "layers.3.self_attn.q_proj")
    return keys


def _fits(key: str, module: str) -> bool:
    """As PEFT has it: the end of the module's name, from a dot on; with ^ the whole name."""
    if key.startswith("^"):
        return module == key[1:]
    return module == key or module.endswith(f".{key}")
