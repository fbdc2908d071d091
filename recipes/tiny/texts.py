"""Texts to be spoken by `made_speech.py`, from clones of public repositories whose licences are free.

    python recipes/tiny/texts.py cache/texts.jsonl --held-out ../shared/data/*/{test*,validation}.jsonl --sources \\
        books=clones/the-time-machine books=clones/my-antonia fairytales=clones/FairytaleQAData squad=clones/squad \\
        lj=clones/dc_tts sotu=clones/datasets-sotu sgd=clones/dstc8-schema-guided-dialogue \\
        wikinews=clones/wikinews names=3000

| source     | clone of                                          | licence of the texts             |  words with all |
|------------|---------------------------------------------------|----------------------------------|-----------------|
| books      | standardebooks/*, one a book                      | public domain (US), edition CC0  | 65,000 a book   |
| fairytales | uci-soe/FairytaleQAData                           | public domain, Apache-2.0        | 600,000         |
| squad      | chrischute/squad, tomhosking/aqleaderboard        | CC BY-SA 4.0 (Wikipedia)         | 580,000         |
| lj         | PhilippMatthes/dc_tts (LJ Speech's metadata)      | public domain                    | 220,000         |
| sotu       | stdlib-js/datasets-sotu (from 1913)               | public domain                    | 440,000         |
| sgd        | google-research-datasets/dstc8-schema-guided-dialogue | CC BY-SA 4.0                 | 330,000 taken   |
| wikinews   | vanatteveldt/wikinews                             | CC BY 2.5                        | 200,000         |
| names      | none: a number of messages (`scenes.py`)          | CC0                              | 45 a message    |

About 9,000 words are an hour of speech. A clone is a git directory, bare or not. Sentences that share 7 words in a row
with a text of `--held-out` are dropped. Sources for research or non-commercial use only are not here on purpose.
"""

import argparse
import csv
import io
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from held_out import HeldOut
from scenes import SCENES, scene
from sentences import clean, documents, sentences

from fastslm.data.manifest import write_manifest
from fastslm.errors import FastSLMError, OptionError

SOTU_FIRST = 1913
SGD_WORDS, SGD_OF_SERVICES = 330_000, 60
_XHTML, _TYPE = "{http://www.w3.org/1999/xhtml}", "{http://www.idpf.org/2007/ops}type"
_NOT_READ = frozenset("h1 h2 h3 h4 h5 h6 table figure header footer hgroup svg math img nav ol ul dl".split())  # noqa: SIM905
_NOT_CHAPTERS = re.compile(
    "titlepage|imprint|dedication|epigraph|halftitle|colophon|uncopyright|endnotes|loi|glossary|toc|foreword|introduction"
    "|preface|bibliography"
)


class Text(NamedTuple):
    """A document, before what is held out is dropped; in a dialogue, `speakers` has a number for each sentence."""

    id: str
    kind: str
    licence: str
    sentences: list[str]
    speakers: list[int] | None = None


class Clone:
    """Files of the newest commit of a git directory."""

    def __init__(self, path: Path):
        self.path = path

    def files(self, pattern: str) -> list[str]:
        """Paths that match `pattern` from their beginning to their end, sorted.

        Some clones lack the content of large files, which have no size then: these are left out, and it is said.
        """
        entries = [entry.partition("\t") for entry in self._git("ls-tree", "-r", "-l", "-z", "HEAD").split("\0")]
        sizes = {name: told.split()[-1] for told, _, name in entries if re.fullmatch(pattern, name)}
        found = sorted(name for name, size in sizes.items() if size.isdigit())
        if len(found) < len(sizes):
            print(
                f"{self.path} lacks the content of {len(sizes) - len(found)} files; others are read.", file=sys.stderr
            )
        if not found:
            raise OptionError(f"{self.path} has no file {pattern}; is it a clone of what the source needs?")
        return found

    def read(self, name: str) -> str:
        """The text of a file."""
        return self._git("show", f"HEAD:{name}")

    def rows(self, name: str) -> list[dict[str, str]]:
        """A CSV file with a header."""
        csv.field_size_limit(2**30)
        return list(csv.DictReader(io.StringIO(self.read(name))))

    def _git(self, *arguments: str) -> str:
        done = subprocess.run(["git", "-C", self.path, *arguments], capture_output=True)
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().split("\n")[0]
            raise OptionError(f"{self.path} cannot be read as a clone ({said}); give a git directory.")
        return done.stdout.decode("utf-8", "replace")


def _numbered(name: str, kind: str, licence: str, paragraphs: Sequence[str], most: int | None = None) -> Iterator[Text]:
    """Running text as documents of a few minutes."""
    for number, part in enumerate(documents(sentences(map(clean, paragraphs)))[:most]):
        yield Text(f"{name}-{number}", kind, licence, part)


def books(clone: Clone) -> Iterator[Text]:
    """The chapters of a book of Standard Ebooks in reading order, without notes, verse and lists."""
    package = clone.read(clone.files(r"src/epub/content\.opf")[0])
    items = [dict(re.findall(r'(href|id)="([^"]+)"', tag)) for tag in re.findall(r"<item\b[^>]*>", package)]
    places = {item["id"]: item["href"] for item in items if "id" in item and "href" in item}
    title = re.search(r"<dc:title[^>]*>([^<]+)<", package)
    book = re.sub(r"\W+", "-", clean(title[1]).lower()) if title else clone.path.name
    for name in re.findall(r'idref="([^"]+)"', package):
        file = Path(places.get(name, f"text/{name}"))
        if _NOT_CHAPTERS.match(file.name):
            continue
        body = ET.fromstring(clone.read(f"src/epub/{file}")).find(f"{_XHTML}body")
        paragraphs = list(_paragraphs(body)) if body is not None else []
        yield from _numbered(f"book-{book}-{file.stem}", "prose", "public domain (US), CC0", paragraphs)


def _paragraphs(element: ET.Element) -> Iterator[str]:
    tag = element.tag.removeprefix(_XHTML)
    about = f"{element.get(_TYPE, '')} {element.get('class', '')}"
    if tag in _NOT_READ or re.search("epigraph|dedication|verse|poem|song", about):
        return
    if tag == "p":
        yield _text(element)
        return
    for child in element:
        yield from _paragraphs(child)


def _text(element: ET.Element) -> str:
    if "noteref" in element.get(_TYPE, ""):
        return ""
    if element.tag in (f"{_XHTML}br", f"{_XHTML}hr"):
        return " "
    return (element.text or "") + "".join(_text(child) + (child.tail or "") for child in element)


def fairytales(clone: Clone) -> Iterator[Text]:
    """The stories of FairytaleQA."""
    for name in clone.files(r"data-by-train-split/section-stories/.*-story\.csv"):
        story = Path(name).stem.removesuffix("-story")
        paragraphs = [row["text"] for row in clone.rows(name)]
        yield from _numbered(f"fairytale-{story}", "prose", "public domain, Apache-2.0", paragraphs)


def squad(clone: Clone) -> Iterator[Text]:
    """The paragraphs of SQuAD by article, without foreign names in brackets."""
    for name in clone.files(r"(?:.*/)?(?:train|dev|test|new_wiki)[-_]v[12]\.[01]\.json"):
        for number, article in enumerate(json.loads(clone.read(name))["data"]):
            contexts = [paragraph["context"] for paragraph in article["paragraphs"]]
            paragraphs = [re.sub(r"\[[^\]]{0,40}\]|\s*\([^()]*[^\x00-\x7f][^()]*\)", "", text) for text in contexts]
            title = f"{Path(name).stem}-{number}-{article.get('title', '')}".rstrip("-")
            yield from _numbered(f"squad-{title}", "encyclopedia", "CC BY-SA 4.0", paragraphs)


def lj(clone: Clone) -> Iterator[Text]:
    """The texts of LJ Speech by chapter."""
    chapters: dict[str, list[str]] = {}
    for line in clone.read(clone.files(r"(?:.*/)?metadata.*\.csv")[0]).splitlines():
        name, text, *_ = [*line.split("|"), ""]
        chapters.setdefault(name.partition("-")[0], []).append(text)
    for chapter, texts in chapters.items():
        yield from _numbered(f"lj-{chapter}", "prose", "public domain", [" ".join(texts)])


def sotu(clone: Clone) -> Iterator[Text]:
    """At most six parts of each State of the Union address since 1913."""
    for name in clone.files(r"data/\d{4}_.*\.txt"):
        if int(Path(name).stem[:4]) >= SOTU_FIRST:
            text = re.sub(r"\((?:Applause|Laughter)[^)]*\)|\[[^\]]*\]", " ", clone.read(name))
            yield from _numbered(f"sotu-{Path(name).stem}", "speech", "public domain", re.split(r"\n\s*\n", text), 6)


def sgd(clone: Clone) -> Iterator[Text]:
    """Schema-Guided Dialogue, at most 60 of the same services."""
    found = [
        (name, dialogue)
        for name in clone.files(r"(?:train|dev)/dialogues_\d+\.json")
        for dialogue in json.loads(clone.read(name))
    ]
    Random(7).shuffle(found)
    taken: dict[tuple[str, ...], int] = {}
    words = 0
    for name, dialogue in found:
        services = tuple(sorted(dialogue["services"]))
        said = [
            (turn["speaker"] != "USER", s) for turn in dialogue["turns"] for s in sentences([clean(turn["utterance"])])
        ]
        count = sum(len(sentence.split()) for _, sentence in said)
        if taken.get(services, 0) >= SGD_OF_SERVICES or count < 150 or words > SGD_WORDS:
            continue
        taken[services] = taken.get(services, 0) + 1
        words += count
        own = f"sgd-{name.partition('/')[0]}-{dialogue['dialogue_id']}"
        yield Text(own, "dialogue", "CC BY-SA 4.0", [s for _, s in said], [int(who) for who, _ in said])


def wikinews(clone: Clone) -> Iterator[Text]:
    """News articles, each once."""
    seen: set[str] = set()
    for name in clone.files(r"data/wikinews_\d{4}\.csv"):
        for number, row in enumerate(clone.rows(name)):
            text = row.get("text") or row.get("body") or ""
            if text not in seen:
                seen.add(text)
                paragraphs = [re.sub(r"\[[^\]]{0,30}\]", "", p) for p in text.split("\n") if len(p.split()) > 4]
                yield from _numbered(f"{Path(name).stem}-{number}", "news", "CC BY 2.5", paragraphs)


def names(count: int) -> Iterator[Text]:
    """Generated messages."""
    kinds = sorted(SCENES)
    for number in range(count):
        kind = kinds[number % len(kinds)]
        yield Text(f"names-{number:05d}", "names", "CC0", scene(kind, Random(f"names-{number}")))


SOURCES: dict[str, Callable[[Clone], Iterator[Text]]] = {
    own.__name__: own for own in (books, fairytales, squad, lj, sotu, sgd, wikinews)
}


def texts_of(source: str) -> Iterator[Text]:
    """The texts of NAME=CLONE, or of names=COUNT.

    Raises:
        OptionError: there is no such source, or its clone is not one.
    """
    name, _, value = source.partition("=")
    if name == "names" and value.isdecimal():
        return names(int(value))
    if name not in SOURCES or not value:
        raise OptionError(f"{source!r} is no source; write {'=CLONE, '.join(SOURCES)}=CLONE or names=COUNT.")
    return SOURCES[name](Clone(Path(value)))


def rows(sources: Sequence[str], held_out: HeldOut) -> Iterator[dict[str, Any]]:
    """A row for each text of the sources, each id once, without the sentences that are held out."""
    seen: set[str] = set()
    for source in sources:
        for text in texts_of(source):
            kept = held_out.kept(text.sentences)
            if kept and text.id not in seen:
                seen.add(text.id)
                row = {"id": text.id, "kind": text.kind, "source": source.partition("=")[0], "licence": text.licence}
                row["sentences"] = [text.sentences[index] for index in kept]
                if text.speakers is not None:
                    row["speakers"] = [text.speakers[index] for index in kept]
                yield row


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the texts. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the JSONL file to write")
    parser.add_argument("--sources", nargs="+", required=True, help="NAME=CLONE, or names=COUNT")
    parser.add_argument("--held-out", type=Path, nargs="+", required=True, help="manifests of tests and validation")
    given = parser.parse_args(arguments)
    try:
        found = list(rows(given.sources, HeldOut.of(given.held_out)))
        write_manifest(given.out, found)
    except FastSLMError as error:
        print(f"texts: {error}", file=sys.stderr)
        return 2
    print(f"{given.out}: {len(found)} texts, {sum(len(s.split()) for row in found for s in row['sentences']):,} words")
    return 0


if __name__ == "__main__":
    sys.exit(main())
