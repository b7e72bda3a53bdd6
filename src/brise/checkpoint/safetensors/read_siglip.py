"""The tensors of SigLIP's encoder and Gemma 3's projector in a Hugging Face folder, under any of their spellings."""

from __future__ import annotations

from collections.abc import Collection

from brise.checkpoint.read_siglip import tensor_name
from brise.checkpoint.safetensors.read_tensors import Matrix, SafetensorsTensors
from brise.models.pixtral import NUM_CHANNELS
from brise.models.siglip import SiglipConfig
from brise.models.weights import Dense

PREFIXES = ("", "model.")  # in files, and to transformers itself
OUTER, INNER = "vision_tower.", "vision_tower.vision_model."  # of transformers 5, and of versions before


class HfSiglipTensors:
    """read_siglip.SiglipTensors; `names` are all tensors of the folder."""

    def __init__(self, tensors: SafetensorsTensors, names: Collection[str]) -> None:
        self._tensors = tensors
        patch = tensor_name("patch_conv", "hf")
        spellings = [(prefix, encoder) for prefix in PREFIXES for encoder in (OUTER, INNER)]
        self._prefix, self._encoder = next(
            (spelling for spelling in spellings if f"{spelling[0]}{patch.replace(OUTER, spelling[1])}" in names),
            spellings[0])

    def vector(self, path: str, size: int) -> Dense:
        return self._tensors.vector(*self._module(path, size))

    def matrix(self, path: str, rows: int, cols: int) -> Matrix:
        name = self._name(path)
        if not name.endswith(".weight"):
            return self._tensors.named(name, rows, cols)
        return self._tensors.matrix(name.removesuffix(".weight"), rows, cols)

    def kernel(self, path: str, config: SiglipConfig) -> Dense:
        shape = (NUM_CHANNELS, config.patch_size, config.patch_size)
        return self._tensors.kernel(self._name(path).removesuffix(".weight"), config.width, shape)

    def _name(self, path: str) -> str:
        return self._prefix + tensor_name(path, "hf").replace(OUTER, self._encoder)

    def _module(self, path: str, size: int) -> tuple[str, int, str]:
        module, kind = self._name(path).rsplit(".", 1)
        return module, size, kind
