"""Finding SKUs by name, title or any other fact, whatever the case and the accents, page by page.

All that is known of the SKUs is folded once per version of a gallery, into Arrow text. It knows nothing about HTTP.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import threading
import unicodedata
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from skumatch.errors import ConfigError
from skumatch.sku_table import SKU
from skumatch.spec import Ids
from skumatch.view_directory import Int32s

if TYPE_CHECKING:
    from pyarrow import Array, ChunkedArray, Table

    from skumatch.gallery_seam import AnyGallery

BLOCK = 65_536  # rows folded at a time
RANKS = 3  # is called so, begins so, holds it somewhere
WORDS = 16  # of a query, at most: each costs a look at everything
FEW = 100  # characters up to which replacing one after the other is the fastest way
_lock = threading.Lock()
_known: weakref.WeakKeyDictionary[AnyGallery, Names] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Listed:
    """A SKU as it is listed: name, code in the gallery, number of views, and what is known of it by column."""

    sku: str
    code: int
    views: int
    facts: dict[str, str]


class Names:
    """The names and facts of a gallery's SKUs, to be searched. Keeps a copy of them and not the gallery.

    Building reads all facts: call it off an event loop. Raises ServerError where the gallery is in Milvus.
    """

    def __init__(self, gallery: AnyGallery) -> None:
        self.table: Table = gallery.facts.known()
        self.codes: Int32s = np.asarray(gallery.skus.codes(_flat(self.table[SKU])), np.int32)
        self.views: Int32s = np.bincount(gallery.codes(gallery.ids)).astype(np.int32)
        self.text: ChunkedArray = _folded(self.table)

    def __len__(self) -> int:
        """Return the number of SKUs."""
        return len(self.codes)

    def find(self, query: str, limit: int, after: str = "") -> tuple[list[int], str]:
        """Return the codes of up to ``limit`` SKUs that hold every word of ``query``, and the cursor after them.

        A word may stand anywhere in the name or a fact. SKUs called like the query come first, then those whose names
        begin so, then the others, each by name; an empty query finds all. ``after``: the cursor that the page before
        ended with, "" for the first; the cursor is "" where nothing follows. A cursor holds in later versions of the
        gallery, too. Raises ConfigError for a cursor that is none or of another query, and for more than 16 words.
        """
        rows, cursor = self._page(query, limit, after)
        return self.codes[rows].tolist(), cursor

    def listed(self, query: str, limit: int, after: str = "") -> tuple[list[Listed], str]:
        """Return what ``find`` finds with views and facts. Raises as ``find`` does."""
        rows, cursor = self._page(query, limit, after)
        return self._told(rows), cursor

    def get(self, name: str) -> Listed | None:
        """Return the SKU called ``name``, None where there is none."""
        row = self._after(name) - 1
        if row < 0 or self.table[SKU][row].as_py() != name:
            return None
        return self._told(np.array([row]))[0]

    def _told(self, rows: Ids) -> list[Listed]:
        found = []
        for row, said in zip(rows.tolist(), self.table.take(rows).to_pylist(), strict=True):
            code = int(self.codes[row])
            facts = {name: text for name, text in said.items() if text and name != SKU}
            found.append(Listed(said[SKU], code, int(self.views[code]), facts))
        return found

    def _page(self, query: str, limit: int, after: str) -> tuple[Ids, str]:
        asked = " ".join(fold(query).encode("utf-8", "replace").decode().split())
        if asked.count(" ") >= WORDS:
            raise ConfigError(f"the query has more than {WORDS} words", "give fewer")
        last = _opened(after, asked) if after else None
        found: list[Ids] = []
        room = limit + 1  # one more tells whether anything follows
        for rank, rows in self._ranked(asked):
            if last is not None and rank <= last[0]:
                rows = rows[np.searchsorted(rows, self._after(last[1])) :] if rank == last[0] else rows[:0]
            found.append(rows[:room])
            room -= len(found[-1])
            if not room:
                break
        page = np.concatenate(found)[:limit]
        if room:
            return page, ""
        end = page[-1]
        rank = next(rank for rank in range(len(found)) if end in found[rank])
        return page, _cursor(asked, rank, self.table[SKU][int(end)].as_py())

    def _ranked(self, asked: str) -> Iterator[tuple[int, Ids]]:
        """Yield the rows of each rank, ascending: they are in the order of the names."""
        import pyarrow.compute as pc

        nothing = np.empty(0, np.int64)
        if not asked:
            yield from ((0, np.arange(len(self))), (1, nothing), (2, nothing))
            return
        rows = self._holding(asked.split())
        some = self.text.take(rows)
        called = _flags(pc.starts_with(some, asked + "\n"))
        begins = _flags(pc.starts_with(some, asked)) & ~called
        yield from ((0, rows[called]), (1, rows[begins]), (2, rows[~called & ~begins]))

    def _holding(self, words: Sequence[str]) -> Ids:
        """Return the rows whose text holds all ``words``, ascending."""
        import pyarrow.compute as pc

        text, rows = self.text, np.arange(len(self))
        for word in sorted(set(words), key=len, reverse=True):  # a long one leaves the fewest
            held = np.flatnonzero(_flags(pc.match_substring(text, word)))
            rows, text = rows[held], text.take(held)
        return rows

    def _after(self, name: str) -> int:
        """Return the row of the first name after ``name``, in the order of UTF-8."""
        column, low, high = self.table[SKU], 0, len(self)
        wanted = name.encode("utf-8", "replace")
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if column[middle].as_py().encode() <= wanted else (low, middle)
        return low


def names_of(gallery: AnyGallery) -> Names:
    """Return the Names of ``gallery``, made when first asked for and kept as long as the gallery is."""
    with _lock:
        names = _known.get(gallery)
        if names is None:
            names = _known[gallery] = Names(gallery)
        return names


def known_names(gallery: AnyGallery) -> Names | None:
    """Return the Names of ``gallery`` where they were made already."""
    return _known.get(gallery)


def fold(text: str) -> str:
    """Return ``text`` without accents and case: NFKD (Unicode Standard Annex 15), combining marks dropped, casefolded.

    Goes character by character: folding a text in parts, or again, changes nothing.
    """
    if text.isascii():
        return text.lower()
    return _bare(_bare(text).casefold())  # casefolding may compose


def _bare(text: str) -> str:
    return "".join(part for part in unicodedata.normalize("NFKD", text) if not unicodedata.combining(part))


def _folded(table: Table) -> ChunkedArray:
    """Return the cells of each row of ``table`` as one folded text: the name, a line break, the facts."""
    import pyarrow as pa
    import pyarrow.compute as pc

    blocks = []
    for start in range(0, len(table), BLOCK):
        cells = [_flat(pc.fill_null(column, "")) for column in table.slice(start, BLOCK).columns]
        text = pc.ascii_lower(pc.binary_join_element_wise(*cells, pa.scalar(""), "\n"))
        foreign = pc.invert(pc.string_is_ascii(text))
        blocks.append(pc.replace_with_mask(text, foreign, _folded_at_once(text.filter(foreign))))
    return pa.chunked_array(blocks, pa.string())


def _folded_at_once(texts: Array) -> Array:
    """Return each of ``texts`` folded; as one string, as Python is slow at many."""
    import pyarrow as pa
    import pyarrow.compute as pc

    text = "\0".join(pc.replace_substring(texts, "\0", " ").to_pylist())
    folds = {character: fold(character) for character in set(text)}
    other = [character for character, folded in folds.items() if folded != character]
    if len(other) > FEW:
        text = text.translate({ord(character): folded for character, folded in folds.items()})
    for character in other if len(other) <= FEW else ():
        text = text.replace(character, folds[character])
    return pa.array(text.split("\0") if len(texts) else [], pa.string())


def _flat(array: Any) -> Any:
    import pyarrow as pa

    return pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array


def _flags(array: Any) -> Any:
    """Return an Arrow array of truth values as bool (N,)."""
    return np.asarray(array)


def _cursor(asked: str, rank: int, name: str) -> str:
    return base64.urlsafe_b64encode(json.dumps([_mark(asked), rank, name], ensure_ascii=False).encode()).decode()


def _mark(asked: str) -> str:
    """Return what tells queries apart."""
    return hashlib.sha256(asked.encode()).hexdigest()[:16]


def _opened(cursor: str, asked: str) -> tuple[int, str]:
    """Return rank and name of a cursor. Raises ConfigError."""
    try:
        mark, rank, name = json.loads(base64.b64decode(cursor, b"-_", validate=True))
        name.encode()
        fine = mark == _mark(asked) and type(rank) is int and 0 <= rank < RANKS
    except (binascii.Error, ValueError, TypeError, AttributeError, RecursionError):
        fine = False
    if not fine:
        raise ConfigError("after is no cursor of this query", "give the 'next' of the page before, with its query")
    return rank, name
