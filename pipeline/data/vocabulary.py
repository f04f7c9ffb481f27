"""Vocabularies: ordered lists of class ids with one text name each, from a TSV file, timm's lists or folder names.

This module does not tokenise names and does not load timm: it reads the text files in timm's wheel. Ids are bytes, as
names of folders and files are; names are text, because a text model hears them.

The naming rule for timm's lists (WordNet synsets with one or more lemmas):
- `distinct` (default): a class takes its first lemma. Classes that share a first lemma take as many of their further
  lemmas as make them differ ("crane, heron-like bird"). Classes that share all their lemmas keep one name: they tie and
  are counted.
- `first-lemma`: a class takes its first lemma only, as in most published zero-shot figures.
"""

from __future__ import annotations

import codecs
import difflib
import hashlib
import importlib.util
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from teachonce.core.files import is_remote
from teachonce.core.outside import read_plain
from teachonce.data import spelling
from teachonce.data.formats import is_leftover
from teachonce.data.places import name_bytes, name_of
from teachonce.errors import DataError, EnvironmentFault, UsageError, did_you_mean
from teachonce.objects.remote import MOST_TEXT
from teachonce.phrases import phrase

RULES = ("distinct", "first-lemma")
HALVES = ("base", "novel")
MOST_SHOWN = 80  # characters of a line or name in a message


@dataclass(frozen=True)
class Vocabulary:
    """Class ids and their names, in the order that class indices refer to."""

    ids: tuple[str, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def to_tsv(self) -> bytes:
        """Return one `id TAB name` line for each class, in UTF-8; an id that is no UTF-8 keeps its bytes."""
        return name_bytes("".join(f"{i}\t{n}\n" for i, n in zip(self.ids, self.names, strict=True)))

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the TSV form."""
        return hashlib.sha256(self.to_tsv()).hexdigest()

    @cached_property
    def index(self) -> spelling.Places:
        """Class id -> class index; an id is found whatever its Unicode form is."""
        return spelling.Places(self.ids)

    def tied(self) -> int:
        """Count the classes that share their name with another class: no text model can tell these apart."""
        return sum(count for count in Counter(map(spelling.spoken, self.names)).values() if count > 1)

    def remarks(self, ties: bool = True) -> tuple[str, ...]:
        """Return a sentence for each thing about the names that a person should know before a model hears them."""
        sentences = []
        if ties and (tied := self.tied()):
            sentences.append(f"{tied} of {len(self)} classes share their name with another: they tie")
        if bare := [name for name in self.names if spelling.is_bare_id(name)]:
            sentences.append(
                f"{len(bare)} of {len(self)} class names are ids or numbers, the first is '{bare[0]}': a text model "
                "hears just that; a class list (id TAB name) says what the classes are called"
            )
        return tuple(sentences)


def parse_tsv(text: str, where: str, exact: bool = False) -> Vocabulary:
    """Read `id TAB name` lines; `load_vocabulary` asks more of a list that a person made.

    Args:
        exact: white space around ids and inside names is as meant, since `to_tsv` wrote the lines.

    Raises:
        DataError: a line has not exactly both fields, an id comes twice, or there is no line at all.
    """
    ids: list[str] = []
    names: list[str] = []
    for number, line in enumerate(_lines(text), 1):
        if not line.strip():
            continue
        class_id, _, name = line.partition("\t")
        name, _, more = name.partition("\t")
        if not class_id.strip() or not name.strip() or more.strip():
            too_many = "; what follows a second tab is part of no name" if more.strip() else ""
            raise DataError(
                f"{where}, line {number}: expected `id TAB name`, found {shown(line)}{too_many}",
                hint="a class list holds one class a line: its id, one tab, its name",
            )
        # This check comes before white space is joined, because some control characters count as white space.
        if spelling.has_control(name):
            raise _odd_name(f"{where}, line {number}", class_id.strip(), name)
        ids.append(class_id if exact else class_id.strip())
        names.append(name if exact else " ".join(name.split()))
    return checked(ids, names, where)


def list_text(path: Path) -> str:
    """Read a list of classes or images. Bytes that are no UTF-8 stay what they are: file names may have such.

    Raises:
        OSError: the file cannot be read.
        DataError: it is UTF-16.
    """
    data = path.read_bytes() if is_remote(path) else read_plain(path, MOST_TEXT)
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path} is in UTF-16", hint="save it as UTF-8")
    return name_of(data.removeprefix(codecs.BOM_UTF8))


def refuse_header(text: str, where: str) -> None:
    """Refuse a list whose first line names columns: it would count as a class, and shift every label by one.

    Raises:
        DataError: it does. An empty line before it says that these words are a class.
    """
    first = _lines(text)[0]
    if first.strip() and spelling.is_header(first):
        raise DataError(
            f"{where}, line 1: {shown(first)} looks like a header line, which would count as class 0",
            hint="remove that line; if these words are a class, leave an empty line before it",
        )


def _lines(text: str) -> list[str]:
    """Split text into lines that end in LF or CR LF; `str.splitlines` would cut at a dozen other characters too."""
    return [line.removesuffix("\r") for line in text.split("\n")]


def shown(text: str) -> str:
    """Return a line or a name in quotes; a long one loses its end."""
    return repr(text if len(text) <= MOST_SHOWN else text[:MOST_SHOWN] + "...")


def load_vocabulary(spec: str, root: Path | None = None) -> Vocabulary:
    """Read a vocabulary.

    Args:
        spec: `FILE.tsv` (a relative path that does not exist as given is looked for below `root`), `timm:NAME` or
            `timm:NAME/RULE` with a rule of this module's docstring.
        root: the data's folder, for relative files.

    Raises:
        UsageError: there is no such list or rule.
        DataError: the file is missing or malformed.
        EnvironmentFault: the file is remote, and the network or a permission is missing.
    """
    if spec.startswith("timm:"):
        return _load_timm(spec)
    path = Path(spec)
    try:
        if root is not None and not path.is_file():
            path = root / spec if (root / spec).is_file() else path
        text = list_text(path)
    except OSError as problem:
        missing = isinstance(problem, FileNotFoundError) and root is not None and not path.is_absolute()
        raise DataError(
            f"there is no class list {path}, neither below {root} nor in {Path.cwd()}"
            if missing
            else f"cannot read the class list {path}: {problem}",
            hint="a class list is a TSV file (id TAB name) or timm:NAME, e.g. timm:imagenet22k"
            + ("; the data's folder is the one that holds its list" if missing else ""),
        ) from problem
    refuse_header(text, str(path))
    return _told_apart(parse_tsv(text, str(path)), str(path))


def read_class_ids(path: Path, vocabulary: Vocabulary) -> tuple[str, ...]:
    """Read the classes that a file names, one id a line; what follows a tab (a name) is for people.

    Where no such file exists, `base` and `novel` mean the halves of the vocabulary.

    Returns:
        The ids in the order of the vocabulary, whatever their order in the file.

    Raises:
        DataError: the file cannot be read, names no class, names a class twice, or names one that the vocabulary lacks.
    """
    if str(path) in HALVES and not path.is_file():
        return half_of(vocabulary, str(path))
    try:
        text = list_text(path)
    except OSError as problem:
        raise DataError(
            f"cannot read the class file {path}: {problem}",
            hint="a class file holds one class id a line; a tab and a name may follow",
        ) from problem
    ids = [line.partition("\t")[0].strip() for line in _lines(text) if line.strip()]
    if not ids:
        raise DataError(f"{path} names no class: expected one class id a line")
    counts = Counter(map(spelling.one_form, ids))
    twice = [class_id for class_id, count in counts.items() if count > 1]
    if twice:
        raise DataError(f"{path}: the class id '{twice[0]}' comes {counts[twice[0]]} times; once is meant")
    require_classes(ids, vocabulary, str(path))
    return tuple(vocabulary.ids[place] for place in sorted(map(vocabulary.index.__getitem__, ids)))


def half_of(vocabulary: Vocabulary, which: str) -> tuple[str, ...]:
    """Return the first half of the classes in their order (`base`) or the rest (`novel`).

    Of an odd number of classes `base` has one more, as in CoOp.
    """
    middle = -(-len(vocabulary) // 2)
    return vocabulary.ids[:middle] if which == "base" else vocabulary.ids[middle:]


def require_classes(ids: Sequence[str], vocabulary: Vocabulary, where: str) -> None:
    """Refuse class ids that the vocabulary lacks.

    Raises:
        DataError: some ids are unknown; the message names the first three, each with the nearest known id.
    """
    unknown = [class_id for class_id in ids if class_id not in vocabulary.index]
    if not unknown:
        return
    near = [f"'{class_id}' ({_nearest_id(class_id, vocabulary)})" for class_id in unknown[:3]]
    more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
    raise DataError(
        f"{where}: {len(unknown)} class ids are not in the vocabulary: {', '.join(near)}{more}",
        hint="give ids of the class list in use, one a line; the id is what stands before the tab there",
    )


def _nearest_id(class_id: str, vocabulary: Vocabulary) -> str:
    near = difflib.get_close_matches(class_id, vocabulary.ids, n=1, cutoff=0.6)
    return f"did you mean '{near[0]}'?" if near else f"the first known is '{vocabulary.ids[0]}'"


def take_classes(vocabulary: Vocabulary, ids: Sequence[str]) -> Vocabulary:
    """Return the vocabulary of these classes, in this order."""
    return Vocabulary(tuple(ids), tuple(vocabulary.names[vocabulary.index[class_id]] for class_id in ids))


def folder_vocabulary(folder: Path) -> Vocabulary:
    """Make a vocabulary of class folders: their sorted names are the ids; text names have spaces for underscores.

    Raises:
        DataError: the folder is missing, holds no class folder, or one whose name is no text.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: expected one folder a class there")
    folders = [item.name for item in folder.iterdir() if item.is_dir()]
    ids = sorted(name for name in folders if not name.startswith(".") and not is_leftover(name))
    return unlisted(ids, [name.replace("_", " ").strip() or name for name in ids], str(folder))


def unlisted(ids: Sequence[str], names: Sequence[str], where: str) -> Vocabulary:
    """Make a vocabulary of ids that no list gives names to: WordNet ids have those of timm's lists, if timm knows them.

    Args:
        ids: as folders or a schema have them.
        names: what the ids say by themselves, for the others.
        where: a description of the source, for messages.

    Raises:
        DataError: there is no class, an id comes twice, or a name is no text that a model could hear.
    """
    if any(map(spelling.WORDNET_ID.fullmatch, ids)):
        lemmas = _lemmas(_timm_info_folder())
        names = distinct_names([lemmas.get(i) or [name] for i, name in zip(ids, names, strict=True)])
    return _told_apart(checked(ids, names, where), where)


def _told_apart(vocabulary: Vocabulary, where: str) -> Vocabulary:
    """Refuse ids that differ only in their Unicode form: no folder, archive or list could tell such classes apart."""
    first: dict[str, str] = {}
    for class_id in vocabulary.ids:
        other = first.setdefault(spelling.one_form(class_id), class_id)
        if other != class_id:
            raise DataError(
                f"{where}: two class ids are '{class_id}' and differ only in their Unicode form (composed and "
                f"decomposed letters): {ascii(other)} and {ascii(class_id)}",
                hint="put them together, or rename one",
            )
    return vocabulary


def checked(ids: Sequence[str], names: Sequence[str], where: str) -> Vocabulary:
    """Make a vocabulary, once it is sound.

    Raises:
        DataError: there is no class, an id comes twice, or a name is no text that can be seen.
    """
    if not ids:
        raise DataError(f"{where} holds no class")
    twice = [class_id for class_id, count in Counter(ids).items() if count > 1]
    if twice:
        raise DataError(f"{where}: the class id '{twice[0]}' comes {ids.count(twice[0])} times; ids must be unique")
    for class_id, name in zip(ids, names, strict=True):
        if spelling.has_stray_bytes(name):
            raise DataError(
                f"{where}: the name of class '{class_id}' is no UTF-8 text, so no text model can hear it",
                hint="save the class list as UTF-8; class folders need a class list (id TAB name), or other names",
            )
        if spelling.has_control(name) or not spelling.is_visible(name):
            raise _odd_name(where, class_id, name)
    return Vocabulary(tuple(ids), tuple(names))


def _odd_name(where: str, class_id: str, name: str) -> DataError:
    return DataError(
        f"{where}: the name of class '{class_id}' is {shown(name)}: it has control characters, or "
        "nothing that can be seen",
        hint="write the name as one would say it",
    )


def _load_timm(spec: str) -> Vocabulary:
    name, _, rule = spec[len("timm:") :].partition("/")
    rule = rule or "distinct"
    if rule not in RULES:
        raise UsageError(
            f"{spec}: unknown naming rule '{rule}': {did_you_mean(rule, RULES)}",
            hint="write timm:NAME, or timm:NAME/RULE with a rule of " + " or ".join(RULES),
        )
    folder = _timm_info_folder()
    suffix = "_synsets.txt"
    shipped = sorted(path.name[: -len(suffix)] for path in folder.glob(f"*{suffix}"))
    if name not in shipped:
        raise UsageError(
            f"{spec}: timm ships no class list '{name}': {did_you_mean(name, shipped)}",
            hint="give timm:NAME of a list that timm ships, or a TSV file (id TAB name)",
        )
    ids = (folder / f"{name}{suffix}").read_text(encoding="utf-8").split()
    lemmas = _lemmas(folder)
    missing = [class_id for class_id in ids if not lemmas.get(class_id)]
    if missing:
        raise DataError(f"{spec}: timm's list has no name for {len(missing)} classes, the first is '{missing[0]}'")
    names = [lemmas[i][0] for i in ids] if rule == "first-lemma" else distinct_names([lemmas[i] for i in ids])
    return checked(ids, names, spec)


def _lemmas(folder: Path) -> dict[str, list[str]]:
    """Read the lemmas of every WordNet id that timm knows."""
    lemmas: dict[str, list[str]] = {}
    for line in (folder / "imagenet_synset_to_lemma.txt").read_text(encoding="utf-8").split("\n"):
        class_id, _, text = line.partition("\t")
        lemmas[class_id] = [lemma.strip() for lemma in text.split(",") if lemma.strip()]
    return lemmas


def distinct_names(lemmas: Sequence[Sequence[str]]) -> list[str]:
    """Name each class by its first lemma, and by further lemmas where classes would share a name.

    Args:
        lemmas: the lemmas of each class in their order; no class may have none.

    Returns:
        One name for each class. Equal names belong to classes whose lemmas are all the same.
    """
    used = [1] * len(lemmas)
    while True:
        groups: dict[str, list[int]] = defaultdict(list)
        for i, words in enumerate(lemmas):
            groups[spelling.spoken(", ".join(words[: used[i]]))].append(i)
        longer = [i for group in groups.values() if len(group) > 1 for i in group if used[i] < len(lemmas[i])]
        if not longer:
            return [", ".join(words[: used[i]]) for i, words in enumerate(lemmas)]
        for i in longer:
            used[i] += 1


def _timm_info_folder() -> Path:
    # find_spec does not run timm, which would import torch and take ten seconds.
    timm = importlib.util.find_spec("timm")
    if timm is None or timm.origin is None:
        raise EnvironmentFault("the package timm, which carries the ImageNet class lists, is not installed")
    return Path(timm.origin).parent / "data" / "_info"


def require_template(template: str) -> tuple[str, str]:
    """Split a template into the text before and after the class name.

    Raises:
        UsageError: the template does not have exactly one `{}`.
    """
    before, hole, after = template.partition("{}")
    if not hole or "{}" in after:
        raise UsageError(
            f"the template {template!r} must hold exactly one {{}} for the class name",
            hint=phrase('for example {template} "a photo of a {{}}."'),
        )
    return before, after
