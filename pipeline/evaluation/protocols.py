"""Protocols: TOML files that say on which sets, and among which names, prompts are evaluated together.

This module reads protocols and averages figures; it evaluates nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from teachonce.core.documents import read_toml, toml_in
from teachonce.core.strict import decode
from teachonce.data.vocabulary import HALVES
from teachonce.errors import DataError, UsageError, neither_file_nor_name
from teachonce.evaluation.choice import Among
from teachonce.phrases import Phrase, option, phrase

OPTION = "--"  # begins a value such as "--manifest", which is replaced by the value of that option
DEFAULTS = {"split": "val"}
MAY_LACK = ("vocabulary",)  # without this option, the manifest's own names are used
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_AVERAGED = ("top1", "top5", "macro", "ece", "nll", "template_top1", "gain", "linear_top1", "linear_gain")


@dataclass(frozen=True, kw_only=True)
class ProtocolSet:
    """One line of the table: a part of a data set, and the names that compete."""

    name: str
    manifest: str
    split: str = "test"
    classes: str | None = None
    """`base`, `novel`, `all`, `timm:NAME`, or a file of class ids: beside the protocol, or as a path."""
    among: Among = "classes"
    without: str | None = None
    vocabulary: str | None = None
    template: str | None = None
    """None: the manifest's template."""

    def __post_init__(self) -> None:
        """Raises ValueError for a name that files cannot have."""
        if not _FILE_NAME.fullmatch(self.name):
            raise ValueError(f"the name {self.name!r} must be made of letters, digits, dots, - and _: files bear it")

    @property
    def part(self) -> str:
        """The average that the set counts in: sets with the same kind of classes and of names are averaged together."""
        kind = self.classes if self.classes in HALVES else "all" if self.classes in (None, "all") else "listed"
        kind += " among all" if self.among == "all" else ""
        return f"{kind} without some" if self.without else str(kind)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Sets that are reported together."""

    schema: Literal[1]
    name: str
    title: str
    sets: tuple[ProtocolSet, ...]
    about: str = ""
    source: str = ""
    """The publication with figures under this protocol."""

    def __post_init__(self) -> None:
        """Raises ValueError where there is no set, or two of one name."""
        names = [item.name for item in self.sets]
        twice = [name for name in names if names.count(name) > 1]
        if not names or twice:
            raise ValueError(f"two sets are called '{twice[0]}'" if twice else "it names no set")


def shipped_protocols() -> dict[str, Any]:
    """Return every protocol that ships with the package, as a readable resource by its name."""
    folder = resources.files("teachonce.data_manifests") / "protocols"
    return {item.name[: -len(".toml")]: item for item in folder.iterdir() if item.name.endswith(".toml")}


def load_protocol(name_or_path: str) -> Protocol:
    """Read a protocol by the name of a shipped one or by path; class files beside the protocol are found.

    Raises:
        UsageError: the text is neither a shipped name nor a file, or the file is no protocol.
    """
    path, shipped = Path(name_or_path), shipped_protocols()
    try:
        if name_or_path in shipped and not path.is_file():
            table, where = toml_in(shipped[name_or_path].read_bytes()), f"protocol {name_or_path}"
        else:
            table, where = read_toml(path), str(path)
        protocol = decode(Protocol, table, where)
    except OSError as problem:
        raise neither_file_nor_name(name_or_path, "protocol", shipped) from problem
    except ValueError as problem:
        raise UsageError(f"{path} is not valid TOML: {problem}") from problem
    return replace(protocol, sets=tuple(_beside(item, path.parent) for item in protocol.sets))


def _beside(item: ProtocolSet, folder: Path) -> ProtocolSet:
    """Replace files that lie beside the protocol by their whole paths."""
    whole_paths: dict[str, Any] = {
        name: str(folder / value)
        for name in ("manifest", "classes", "without", "vocabulary")
        if (value := getattr(item, name)) and (folder / value).is_file()
    }
    return replace(item, **whole_paths)


def filled_in(protocol: Protocol, options: Mapping[str, str | None]) -> tuple[list[ProtocolSet], list[str]]:
    """Put options where the protocol asks for them.

    Args:
        options: values by option name, such as `manifest`; None where an option was not given.

    Returns:
        The sets, and the names of the sets that are left out because an option that they need was not given.

    Raises:
        UsageError: the protocol needs a manifest, or does not use an option that was given.
    """
    ready, left_out, used = [], [], set[str]()
    for item in protocol.sets:
        option_of = {
            name: value.removeprefix(OPTION)
            for name, value in vars(item).items()
            if isinstance(value, str) and value.startswith(OPTION)
        }
        used |= set(option_of.values())
        values: dict[str, Any] = {n: options.get(key) or DEFAULTS.get(key) for n, key in option_of.items()}
        if "manifest" in option_of and values["manifest"] is None:
            raise UsageError(f"the protocol '{protocol.name}' needs a data set", hint=phrase("add {manifest} M"))
        if any(value is None and option_of[name] not in MAY_LACK for name, value in values.items()):
            left_out.append(item.name)
        else:
            ready.append(replace(item, **values))
    idle = [option(key) for key, value in options.items() if value is not None and key not in used]
    if idle:
        raise UsageError(
            Phrase(", ").join(idle) + f" would do nothing in the protocol '{protocol.name}'", hint="leave it out"
        )
    return ready, left_out


def averages(lines: Sequence[tuple[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Average each figure over the sets of each part; all sets count alike.

    Args:
        lines: part and figures of every set. If a figure of some set is None, its mean is None.
    """
    means = []
    for part in dict.fromkeys(part for part, _ in lines):
        of_part = [figures for other, figures in lines if other == part]
        columns = {key: [figures[key] for figures in of_part] for key in _AVERAGED}
        mean = {key: None if None in column else sum(column) / len(column) for key, column in columns.items()}
        means.append({"part": part, "sets": len(of_part), **mean})
    return means


def harmonic(base: float, novel: float) -> float:
    """H = 2bn / (b + n), the harmonic mean of base and novel accuracy (CoCoOp, arXiv 2203.05557); 0 if both are 0."""
    return 2 * base * novel / (base + novel) if base + novel else 0.0


def harmonic_means(means: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Compute H of the averages over sets, as published, among the classes' own names and among all names."""
    parts = {mean["part"]: mean for mean in means}
    lines: list[dict[str, Any]] = []
    for names, ending in (("own", ""), ("all", " among all")):
        base, novel = parts.get(f"base{ending}"), parts.get(f"novel{ending}")
        if base is None or novel is None:
            continue
        line: dict[str, Any] = {"names": names}
        for side in ("", "template_", "linear_"):
            b, n = base[f"{side}top1"], novel[f"{side}top1"]
            whole = None if b is None or n is None else harmonic(b, n)
            line |= {f"{side}top1_base": b, f"{side}top1_novel": n, f"{side}top1_h": whole}
        lines.append(line)
    return lines


def require_any(missing: Sequence[Mapping[str, str]], ready: Sequence[ProtocolSet]) -> None:
    """Refuse a protocol of which no set can be evaluated.

    Raises:
        DataError: no set has its data; the message names the first set, and the hint says where its data come from.
    """
    if missing and not ready:
        raise DataError(
            f"none of the {len(missing)} sets is there; the first, '{missing[0]['set']}': {missing[0]['problem']}",
            hint=missing[0]["get"],
        )
