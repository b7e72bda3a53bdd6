"""The pool of cache pages: which sequences hold a page, and which pages hold a prefix that may be reused.

A page is free (its contents are worthless), held (sequences refer to it) or idle (no sequence refers to it, but it is
registered under the key of its contents and can be found again; the page that has been idle longest is evicted first).
A key is a digest chained over the adapter and over all tokens, images and audio up to the end of the page, so that
equal keys mean equal contents.
"""

from __future__ import annotations

import os
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

from brise.errors import UnsupportedError
from brise.models.weights import Array

# The default size of the cache: a few full contexts, but not more than this share of the machine's memory.
_NUM_CONTEXTS = 4
_MEMORY_SHARE = 0.25


class Pages:
    """Reference counts and the prefix index; the keys and values themselves lie in the backend's cache."""

    def __init__(self, num_pages: int, page_size: int, *, prefix_cache: bool = True) -> None:
        self.num_pages, self.page_size, self.prefix_cache = num_pages, page_size, prefix_cache
        self._holders = [0] * num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # idle longest first
        self._page_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}

    @property
    def num_available(self) -> int:
        """How many pages `allocate` can hand out now."""
        return len(self._free) + len(self._idle)

    @property
    def num_idle(self) -> int:
        return len(self._idle)

    def allocate(self, count: int) -> list[int]:
        """Takes `count` pages for one holder; the caller has checked `num_available`."""
        assert 0 <= count <= self.num_available, (count, self.num_available)
        taken = []
        for _ in range(count):
            page = self._free.pop() if self._free else self._evict()
            self._holders[page] = 1
            taken.append(page)
        return taken

    def match(self, keys: Iterable[bytes]) -> list[int]:
        """The pages of the longest registered prefix of `keys`; each gets one more holder."""
        pages = []
        for key in keys:
            page = self._page_of.get(key)
            if page is None:
                break
            if self._holders[page] == 0:
                del self._idle[page]
            self._holders[page] += 1
            pages.append(page)
        return pages

    def register(self, page: int, key: bytes) -> None:
        """Registers a full, computed page. It stays private if a page with equal contents is registered already."""
        if self.prefix_cache and key not in self._page_of:
            assert self._holders[page] > 0 and page not in self._key_of, page
            self._page_of[key] = page
            self._key_of[page] = key

    def release(self, pages: Sequence[int]) -> None:
        """Takes one holder from each of `pages`, which are in the order of their sequence.

        The last page is released first, so that the tail of a sequence is evicted before the head that it needs.
        """
        for page in reversed(pages):
            assert self._holders[page] > 0, page
            self._holders[page] -= 1
            if self._holders[page] == 0:
                if page in self._key_of:
                    self._idle[page] = None
                else:
                    self._free.append(page)

    def check(self, tables: Iterable[Iterable[int]] | None = None) -> None:
        """Asserts that counts and index agree; with `tables` (one per holder), also that they match the holders."""
        free, idle = set(self._free), set(self._idle)
        held = {page for page, holders in enumerate(self._holders) if holders > 0}
        assert min(self._holders, default=0) >= 0, "negative reference count"
        assert len(free) == len(self._free), "a page is free twice"
        assert not free & idle and not free & held and not idle & held, "a page is in two states"
        assert len(free) + len(idle) + len(held) == self.num_pages, "a page is lost"
        by_key = {key: page for page, key in self._key_of.items()}
        assert by_key == self._page_of and len(by_key) == len(self._key_of), "the prefix index disagrees"
        assert not free & set(self._key_of), "a free page is registered"
        assert idle <= set(self._key_of), "an idle page cannot be found"
        if tables is not None:
            counts = Counter(page for table in tables for page in table)
            assert counts == Counter(dict(enumerate(self._holders))), "references and holders disagree"

    def _evict(self) -> int:
        page, _ = self._idle.popitem(last=False)
        del self._page_of[self._key_of.pop(page)]
        return page


def chained_key(parent: bytes, tokens: Array, digests: Sequence[bytes] = ()) -> bytes:
    """The key of a page that holds `tokens` (int32) after the page with key `parent`.

    The first page's parent is the digest of the adapter, b"" without one. `digests` are those of the images and the
    audio that its tokens belong to. The digest is cryptographic: a collision would answer one user from another's
    prompt. The count makes the hashed bytes unambiguous.
    """
    return blake2b(b"".join((len(digests).to_bytes(4, "little"), parent, tokens.tobytes(), *digests)),
                   digest_size=16).digest()


def cache_pages(page_bytes: int, cache_bytes: int | None, max_context: int, page_size: int,
                device_bytes: int = 0) -> int:
    """The number of pages that fit into `cache_bytes`; UnsupportedError if not even one does. None: a share of the
    memory (of a device's that is free, if the pages lie there), or what a few contexts take."""
    if cache_bytes is None:
        pages = _NUM_CONTEXTS * -(-max_context // page_size)
        memory_bytes = device_bytes or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return max(min(pages, int(_MEMORY_SHARE * memory_bytes) // page_bytes), 1)
    if cache_bytes < page_bytes:
        raise UnsupportedError(f"a cache of {cache_bytes} bytes holds no page: one takes {page_bytes}")
    return cache_bytes // page_bytes
