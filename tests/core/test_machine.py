"""What the machine lacks is said: a user without a home folder has no cache folder."""

from __future__ import annotations

import pwd
from pathlib import Path

import pytest

from teachonce.core.machine import cache_folder
from teachonce.errors import EnvironmentFault


def test_a_user_without_a_home_folder_is_told_to_name_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """No HOME and no entry in passwd, as in a container that runs under any number; once it is named, all is well."""

    def nobody(number: int) -> None:
        raise KeyError(number)

    for variable in ("HOME", "XDG_CACHE_HOME", "TEACHONCE_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(EnvironmentFault) as caught:
        cache_folder()
    assert "TEACHONCE_CACHE" in caught.value.hint
    monkeypatch.setenv("TEACHONCE_CACHE", "somewhere")
    assert cache_folder() == Path("somewhere")
