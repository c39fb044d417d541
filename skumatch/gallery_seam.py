"""The seam for galleries: what matching and the commands ask of an opened one, be it a folder or in Milvus."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from skumatch.errors import SpecMismatch
from skumatch.nearest import Nearest
from skumatch.segment import ViewRow
from skumatch.spec import Ids, Spec, Vectors
from skumatch.technique_store import Store

if TYPE_CHECKING:
    from pyarrow import Table


def require_model(gallery: AnyGallery, spec: Spec) -> None:
    """Raise SpecMismatch unless the vectors of ``gallery`` were made by the encoder with ``spec``."""
    own = gallery.spec
    if spec.digest != own.digest:
        raise SpecMismatch(
            f"gallery {gallery.store} was built with another model ({own.name}, {own.digest[:12]}; "
            f"the model in use is {spec.name}, {spec.digest[:12]})",
            "run `skumatch gallery rebuild` with this model, or give the --model it was built with",
        )


class Names(Protocol):
    """Names of SKUs by code."""

    def __len__(self) -> int:
        """Return the number of SKUs that have a view."""
        ...

    def __getitem__(self, code: Any, /) -> Any:
        """Return the name of ``code``."""
        ...

    def __iter__(self) -> Iterator[str]:
        """Yield all names by code."""
        ...

    def code(self, name: str) -> int:
        """Return the code of ``name``, -1 where it is not there."""
        ...

    def codes(self, names: Any) -> Any:
        """Return the code of each of ``names``, integers (N,), -1 where it is not there."""
        ...


class FactsOfSkus(Protocol):
    """What is known of the SKUs beside their views."""

    @property
    def columns(self) -> list[str]:
        """Names of the facts."""
        ...

    def cell(self, code: int, column: str) -> str:
        """Return a fact of the SKU with ``code``, "" where it is not known."""
        ...

    def of(self, sku: str) -> dict[str, str]:
        """Return all that is known of ``sku`` by column."""
        ...

    def codes(self, filters: Mapping[str, str]) -> Ids:
        """Return the codes of the SKUs whose columns equal ``filters``. Raises GalleryError where none is like that."""
        ...

    def known(self) -> Table:
        """Return all that is known of the SKUs with views: Arrow table of text, column "sku" first, by name."""
        ...


class Chosen(Store, Protocol):
    """Views of a gallery that a filter chose; a technique's Store."""

    @property
    def ids(self) -> Ids:
        """Their ids, ascending."""
        ...


class AnyGallery(Protocol):
    """One version of a gallery, opened. See ``Gallery`` and ``MilvusGallery`` for what each raises."""

    spec: Spec

    def __len__(self) -> int:
        """Return the number of reference views."""
        ...

    @property
    def store(self) -> object:
        """Where it is; its text names it."""
        ...

    @property
    def version(self) -> str:
        """The version's name."""
        ...

    @property
    def made(self) -> str:
        """When the version was published, ISO 8601 with its offset from UTC."""
        ...

    @property
    def identity(self) -> str:
        """Text that differs where anything differs that the gallery answers."""
        ...

    @property
    def skus(self) -> Names:
        """Names of the SKUs by code."""
        ...

    @property
    def ids(self) -> Ids:
        """All view ids, ascending."""
        ...

    @property
    def facts(self) -> FactsOfSkus:
        """What is known of the SKUs beside their views."""
        ...

    def require(self, spec: Spec) -> None:
        """Raise SpecMismatch unless the gallery's vectors were made by the encoder with ``spec``."""
        ...

    def search(self, queries: Vectors, k: int, where: Mapping[str, str] | None = None) -> Nearest:
        """Return the k nearest distinct SKUs of float32 (N, D) unit rows; codes index ``skus``."""
        ...

    def selected(self, filters: Mapping[str, str]) -> Chosen:
        """Return the views of the SKUs whose facts equal all of ``filters``; all of them without filters."""
        ...

    def views(self) -> Iterator[ViewRow]:
        """Yield all views in id order."""
        ...

    def view(self, view_id: int) -> ViewRow:
        """Return a view by id."""
        ...

    def views_of(self, ids: Ids) -> list[ViewRow]:
        """Return views by id, in that order."""
        ...

    def vectors_of(self, ids: Ids) -> Vectors:
        """Return float32 (N, D) rows of views by id."""
        ...

    def codes(self, ids: Ids) -> Ids:
        """Map view ids to SKU codes."""
        ...

    def prototypes(self) -> tuple[Vectors, Ids]:
        """Return each SKU's mean vector, float32 (S, D) unit rows, and the SKU codes (S,), ascending."""
        ...

    def thumb(self, view_id: int) -> bytes:
        """Return a view's JPEG thumbnail."""
        ...

    def code_of(self, sku: str) -> int:
        """Return the code of a SKU. Raises GalleryError when it has no view here."""
        ...

    def ids_of(self, sku: str) -> list[int]:
        """Return the ids of a SKU's views, ascending."""
        ...

    def counts(self) -> dict[str, int]:
        """Return the number of views per SKU."""
        ...

    def title(self, code: int) -> str:
        """Return the title of the SKU with ``code``, "" if none."""
        ...

    def cohesion(self, code: int) -> tuple[float, int]:
        """Return how alike the views of a SKU are and how many it has."""
        ...

    def refreshed(self) -> AnyGallery:
        """Return the current version; self where it is the current one."""
        ...
