"""The pool of cache pages: who holds which, and which hold a prefix that somebody may want again.

A page is free (nothing of worth in it), held (sequences refer to it) or idle (nobody refers to it, but it
is registered under the key of its contents and may be found again; the one idle longest is taken first). A
key is a digest chained over all tokens and images up to the end of the page, and the adapter that they went through, so
equal keys mean equal contents.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

from brise.models.weights import Array


class Pages:
    """Reference counts and the prefix index; the numbers themselves lie in the backend's cache."""

    def __init__(self, num_pages: int, page_size: int, *, prefix_cache: bool = True) -> None:
        self.num_pages, self.page_size, self.prefix_cache = num_pages, page_size, prefix_cache
        self._holders = [0] * num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # longest idle first
        self._page_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}

    @property
    def num_available(self) -> int:
        """How many pages `allocate` could hand out now."""
        return len(self._free) + len(self._idle)

    @property
    def num_idle(self) -> int:
        return len(self._idle)

    def allocate(self, count: int) -> list[int]:
        """Takes `count` pages for one holder; the caller has looked at `num_available`."""
        assert 0 <= count <= self.num_available, (count, self.num_available)
        taken = []
        for _ in range(count):
            page = self._free.pop() if self._free else self._evict()
            self._holders[page] = 1
            taken.append(page)
        return taken

    def match(self, keys: Iterable[bytes]) -> list[int]:
        """Pages of the longest registered run of `keys` from the first on, held once more each."""
        found = []
        for key in keys:
            page = self._page_of.get(key)
            if page is None:
                break
            if self._holders[page] == 0:
                del self._idle[page]
            self._holders[page] += 1
            found.append(page)
        return found

    def register(self, page: int, key: bytes) -> None:
        """Makes a full, computed page findable. If its like is known already, this one stays private."""
        if self.prefix_cache and key not in self._page_of:
            assert self._holders[page] > 0 and page not in self._key_of, page
            self._page_of[key] = page
            self._key_of[page] = key

    def release(self, pages: Sequence[int]) -> None:
        """One holder lets go of `pages`, given from the first of its sequence to the last.

        They go last first, so that of one sequence the tail is evicted before the head it is useless without.
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
        """Asserts that the books agree; with `tables` (one a holder) also that references have holders."""
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


def chained_key(parent: bytes, tokens: Array, images: Sequence[bytes] = ()) -> bytes:
    """The key of a page that holds `tokens` (int32) after the page with key `parent`.

    The first page's parent is the digest of the adapter, b"" without one. `images` are the digests of the images that
    its tokens belong to. A cryptographic digest: a collision would answer one user from another's prompt. The count
    keeps what is hashed apart from every other way to cut it.
    """
    return blake2b(b"".join((len(images).to_bytes(4, "little"), parent, tokens.tobytes(), *images)),
                   digest_size=16).digest()
