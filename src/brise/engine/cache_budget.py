"""How many pages the key/value cache gets."""

from __future__ import annotations

import os

from brise.errors import UnsupportedError
from brise.models.config import Config
from brise.models.ops import Backend, CacheFormat

# Without a stated budget: room for a few full contexts, but not more than this share of the machine's memory.
_NUM_CONTEXTS = 4
_MEMORY_SHARE = 0.25


def page_bytes(backend: Backend, config: Config, page_size: int, format: CacheFormat) -> int:
    """Bytes of one page over all layers, asked of the backend: only it knows its layout."""
    return backend.cache_bytes(config, 1, page_size, format)


def default_pages(bytes_per_page: int, max_context: int, page_size: int) -> int:
    """Pages for a cache that nobody gave a size."""
    wanted = _NUM_CONTEXTS * -(-max_context // page_size)
    return max(min(wanted, int(_MEMORY_SHARE * _physical_bytes()) // bytes_per_page), 1)


def pages_within(cache_bytes: int, bytes_per_page: int) -> int:
    """As many pages as fit into a budget; refuses one that holds not even one."""
    if cache_bytes < bytes_per_page:
        raise UnsupportedError(f"a cache of {cache_bytes} bytes holds no page: one takes {bytes_per_page}")
    return cache_bytes // bytes_per_page


def _physical_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
