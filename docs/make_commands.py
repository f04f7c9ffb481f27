"""Write docs/commands.md: for each command what it is for, from docs/commands.toml, and its options, from its --help.

Run it as `make commands` after a change of either. The page depends on nothing else: no terminal, width or colour.
"""

from __future__ import annotations

import re
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import typer

from teachonce.cli.app import app

SOURCE = Path(__file__).with_name("commands.toml")
PAGE = Path(__file__).with_name("commands.md")
WIDTH = 96
NAMES_WIDTH = 30  # of the column with the names of options; what follows a longer name begins on the next line
START = "start"  # the key of the source whose text stands above the commands


def page(source: str) -> str:
    """The page as text.

    Args:
        source: the text of commands.toml.

    Raises:
        ValueError: the source lacks a command, or describes one that does not exist.
    """
    texts: dict[str, str] = tomllib.loads(source)
    commands = visible_commands()
    if set(texts) != {START, *commands}:
        differing = sorted(set(texts) ^ {START, *commands})
        raise ValueError(f"{SOURCE.name} must have the key {START} and one a command; see {', '.join(differing)}")
    everywhere = set.intersection(*({name for name, _, _ in options_of(command)} for command in commands.values()))
    shared = [(name, words) for name, words, _ in options_of(commands["teach"]) if name in everywhere]
    parts = [
        "<!-- Made by `make commands` from docs/commands.toml and --help: change those, not this page. -->",
        "# Commands",
        texts[START].strip(),
        "\n".join(f"- [{name}](#{name.replace(' ', '-')}): {summary(command)}" for name, command in commands.items()),
        "Every command also takes these options:",
        fenced(columns(shared)),
    ]
    for name, command in commands.items():
        parts += [f"## {name}", texts[name].strip(), fenced(help_of(name, command, everywhere))]
    return "\n\n".join(parts) + "\n"


def visible_commands() -> dict[str, Any]:
    """The commands that `teachonce --help` lists, in its order."""
    group: Any = typer.main.get_command(app)
    commands = {}
    for name, command in group.commands.items():
        words = getattr(command, "commands", None)  # of a group, such as `cluster`
        inner = {name: command} if words is None else {f"{name} {word}": one for word, one in words.items()}
        commands.update({name: one for name, one in inner.items() if not one.hidden})
    return commands


def summary(command: Any) -> str:
    """The first sentence of a command's help, on one line."""
    return " ".join(command.help.split("\n\n")[0].split())


def options_of(command: Any) -> list[tuple[str, str, str]]:
    """Arguments and options of a command: how each is written, its help with its default, and its heading in --help."""
    context = command.context_class(command)
    rows = []
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            name, words = (text.replace("\\[", "[") for text in record)
            argument = parameter.param_type_name == "argument"
            name = re.sub(r" <[^>]*(?:\[[^]]*\])?>$", "", name) if argument else name
            rows.append((name, words, "Arguments" if argument else parameter.rich_help_panel or "Options"))
    return rows


def help_of(name: str, command: Any, everywhere: set[str]) -> str:
    """What `teachonce NAME --help` says, without the options that every command has."""
    usage = " ".join(command.collect_usage_pieces(command.context_class(command)))
    lines = [f"Usage: teachonce {name} {usage}"]
    for paragraph in command.help.split("\n\n"):
        lines += ["", *wrapped(paragraph)]
    rows = [row for row in options_of(command) if row[0] not in everywhere]
    headings = dict.fromkeys(["Arguments", "Options", *(heading for _, _, heading in rows)])  # the order of --help
    for heading in (name for name in headings if any(row[2] == name for row in rows)):
        lines += ["", f"{heading}:", columns([row[:2] for row in rows if row[2] == heading], indent=2)]
    return "\n".join([*lines, "", command.epilog.replace("\b\n", "").strip()])


def columns(rows: list[tuple[str, str]], indent: int = 0) -> str:
    """Names on the left, what they mean on the right."""
    edge = min(max(len(name) for name, _ in rows), NAMES_WIDTH) + 2
    lines = []
    for name, words in rows:
        right = wrapped(words, WIDTH - indent - edge) or [""]
        if len(name) > edge - 2:
            lines.append(name)
            name = ""
        lines += [f"{name:{edge}}{right[0]}", *(" " * edge + line for line in right[1:])]
    return textwrap.indent("\n".join(lines), " " * indent)


def wrapped(text: str, width: int = WIDTH) -> list[str]:
    """Lines of whole words; names with hyphens stay whole too."""
    return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False, break_long_words=False)


def fenced(text: str) -> str:
    """A block of code in Markdown."""
    return f"```text\n{text}\n```"


if __name__ == "__main__":
    PAGE.write_text(page(SOURCE.read_text(encoding="utf-8")), encoding="utf-8")
