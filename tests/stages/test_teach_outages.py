"""What several workers say of one server that is away becomes two notes of the driver."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from worlds import Notes

from teachonce.stages.teach.outages import Outages
from teachonce.teaching.worker import OUTAGES


class Client:
    """Stands for a Dask client: it keeps who listens to a topic."""

    def __init__(self) -> None:
        self.handlers: dict[str, Callable[[Any], None]] = {}

    def subscribe_topic(self, topic: str, handler: Callable[[Any], None]) -> None:
        self.handlers[topic] = handler

    def say(self, who: str, over: bool) -> None:
        text = "s3://b answers again" if over else "s3://b does not answer"
        self.handlers[OUTAGES]((0.0, {"who": who, "server": "s3://b", "over": over, "text": text}))


def test_an_outage_is_noted_when_the_first_worker_waits_and_when_none_does_any_more() -> None:
    client, notes = Client(), Notes()
    outages: Any = Outages(client, notes)  # type: ignore[arg-type]
    for who, over in (("a", False), ("b", False), ("a", True)):
        client.say(who, over)
        outages.pass_on()
    assert notes.lines == ["worker a: s3://b does not answer"]
    client.say("b", True)
    client.say("a", False)
    outages.pass_on()
    assert notes.lines[1:] == ["worker b: s3://b answers again", "worker a: s3://b does not answer"]
