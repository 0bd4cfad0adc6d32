"""The list of commands agrees with the commands."""

from __future__ import annotations

import pytest

from chandlery.main import COMMANDS, loaded


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_can_be_loaded_and_describes_itself(name: str) -> None:
    command = loaded(name)
    assert command.help
    for option in command.params:
        assert getattr(option, "help", None), option.name
