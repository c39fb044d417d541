"""What the Grocery Store data set knows of its 81 classes, as products that titles can be made up for.

Names come from the product information: the English title, the Swedish name in the shop's address of the page, which
lacks its rings and dots (they are put back), and the name of the class. It knows nothing about photos and splits.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from duplicates_titles import Product

DEPARTMENTS: Final = {
    "Fruit": (("fruit", "fresh fruit"), ("frukt", "f\u00e4rsk frukt")),
    "Packages": (("dairy", "chilled drink", "breakfast"), ("mejeri", "kyld dryck", "frukost")),
    "Vegetables": (
        ("vegetable", "fresh vegetables", "veg"),
        ("gr\u00f6nsak", "f\u00e4rska gr\u00f6nsaker", "gr\u00f6nt"),
    ),
}
# Kinds with more than one product; of the others the name is the kind
KINDS: Final = {
    "Apple": "\u00e4pple",
    "Juice": "juice",
    "Melon": "melon",
    "Milk": "mj\u00f6lk",
    "Pear": "p\u00e4ron",
    "Pepper": "paprika",
    "Potato": "potatis",
    "Sour-Cream": "gr\u00e4ddfil",
    "Soy-Milk": "sojadryck",
    "Soyghurt": "sojayoghurt",
    "Tomato": "tomat",
    "Yoghurt": "yoghurt",
}
# The address of a product's page leaves these letters plain
SPELT: Final = (
    "bl\u00e5b\u00e4r drickf\u00e4rdig filmj\u00f6lk fr\u00e5n fruktk\u00f6tt f\u00e4rsk f\u00e4rskpressad "
    "gr\u00e4ddfil gr\u00f6n ingef\u00e4ra l\u00e4ttyoghurt l\u00f6k mellanmj\u00f6lk mj\u00f6lig mj\u00f6lk "
    "purjol\u00f6k p\u00e4ron r\u00f6d r\u00f6dbeta sm\u00e5 standardmj\u00f6lk s\u00f6tpotatis vitk\u00e5l "
    "vitl\u00f6k"
)
PLAINLY: Final = str.maketrans("\u00e5\u00e4\u00f6", "aao")
SPELLING: Final = {
    **{word.translate(PLAINLY): word for word in SPELT.split()},
    "apple": "\u00e4pple",
    "skogschampinjo": "skogschampinjon",
}
COUNTRIES: Final = {
    "Argentina": "Argentina",
    "Brazil": "Brasilien",
    "China": "Kina",
    "Denmark": "Danmark",
    "Germany": "Tyskland",
    "Italy": "Italien",
    "Poland": "Polen",
    "Spain": "Spanien",
    "Sweden": "Sverige",
    "The Netherlands": "Nederl\u00e4nderna",
}


@dataclass(frozen=True)
class Entry:
    """A class of the data set: its ``name`` and ``kind`` as written there, department, and what its page says."""

    name: str
    kind: str
    department: str
    facts: Mapping[str, str]

    @property
    def brand(self) -> str:
        """The maker as far as the class is named after it, "" for loose goods: ARLA KO and Arla-Sour-Milk -> Arla."""
        maker = self.facts.get("Manufacturer and volume", "").partition(",")[0].casefold().split()
        words = self.name.split("-")
        same = [a for a, b in zip(words, maker, strict=False) if a.casefold() == b]
        return " ".join(same)

    @property
    def family(self) -> str:
        """What it looks alike with: its kind, of one brand."""
        return f"{self.brand} {self.kind}"


def read_entries(store: Path) -> list[Entry]:
    """Return the classes in the order of classes.csv."""
    with (store / "classes.csv").open(encoding="utf-8-sig", newline="") as stream:
        lines = list(csv.reader(stream))[1:]
    found = []
    for name, _, kind, _, _, described in lines:
        folder = (store / described.lstrip("/")).parent
        department = described.strip("/").split("/")[1]
        found.append(Entry(name, kind, department, _facts(folder)))
    return found


def _facts(folder: Path) -> dict[str, str]:
    """Return "Title", "URL" and the like from a product's information, whose file is spelt in two ways."""
    file = next(folder.glob("*[-_]Information.txt"), None)
    text = file.read_text(encoding="utf-8-sig").replace("\xa0", " ") if file else ""
    pairs = (line.partition(":") for line in text.splitlines() if ":" in line and not line.startswith(" "))
    return {key.strip(): value.strip() for key, _, value in pairs}


def products_of(entries: Sequence[Entry]) -> list[Product]:
    """Return what titles are made of, for each class."""
    return [_product(entry, [other for other in entries if other != entry]) for entry in entries]


def _product(entry: Entry, others: Sequence[Entry]) -> Product:
    kind = entry.kind.replace("-", " ")
    swedish = (" ".join(swedish_words(entry)) or kind,)
    kinds = kind, KINDS.get(entry.kind, swedish[0])
    vague = DEPARTMENTS[entry.department]
    if any(other.kind == entry.kind for other in others):
        shared = [list(kinds)]
        if entry.brand and any(other.family == entry.family for other in others):
            shared.append([f"{entry.brand} {word}" for word in kinds])
        vague = tuple(names[0] for names in shared), tuple(names[1] for names in shared)
    volume = next((entry.facts[key] for key in entry.facts if key.endswith("volume")), "")
    country = entry.facts.get("Country", volume.partition(",")[0] if "Country and volume" in entry.facts else "")
    return Product(
        name=entry.name,
        brand=entry.brand,
        names=(english_names(entry), swedish),
        vague=vague,
        kind=kinds,
        amount=amount_of(volume),
        country=(country, COUNTRIES.get(country, country)),
        loose=entry.department != "Packages",
    )


def english_names(entry: Entry) -> tuple[str, ...]:
    """Return the name of the class with its kind, and the title where that is not the Swedish one."""
    words = entry.name.removeprefix(entry.brand.replace(" ", "-")).strip("-").split("-")
    kind = entry.kind.split("-")
    if not any(part.casefold() in "".join(words).casefold() for part in kind):
        words += kind
    title = _ungraded(entry.facts.get("Title", ""))
    address = " ".join(swedish_words(entry)).casefold()
    foreign = all(word.casefold() in address for word in title.split())  # "" too
    same = title.casefold() == " ".join(words).casefold()
    return (" ".join(words),) if foreign or same else (" ".join(words), title)


def swedish_words(entry: Entry) -> list[str]:
    """Return its words: "Mellanmjolk-1-5procent-100183962_ST" -> "Mellanmj\\u00f6lk", "1,5%"."""
    address = re.sub(r"-?\d{6,}_\w+$", "", entry.facts.get("URL", "").rpartition("/")[2])
    address = re.sub(r"(\d+)procent", r"\1%", re.sub(r"(\d)-(\d+procent)", r"\1,\2", address))
    words = _ungraded(address.replace("-", " ")).replace("Sverige", "").split()
    return [SPELLING.get(word.casefold(), word).capitalize() for word in dict.fromkeys(words)]


def _ungraded(title: str) -> str:
    return re.sub(r"\s*\b([CK]lass 1|Import)\b", "", title).strip()


def amount_of(text: str) -> tuple[float, str] | None:
    """Return the amount in g or ml that ``text`` names: "ca 1.05kg" -> (1050.0, "g")."""
    found = re.search(r"(\d+(?:[.,]\d+)?)\s*(kg|g|ml|cl|dl|l)\b", text)
    if not found:
        return None
    size = {"kg": 1000, "g": 1, "ml": 1, "cl": 10, "dl": 100, "l": 1000}[found[2]]
    return round(float(found[1].replace(",", ".")) * size, 3), "g" if found[2].endswith("g") else "ml"
