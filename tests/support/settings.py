"""What a server says about its settings."""

import pytest

from gatehouse.shared.service.settings import InvalidSettings, ServerSettings
from gatehouse.shared.service.settings_reading import load_settings


def problems_of(settings_class: type[ServerSettings]) -> dict[str, str]:
    """Return the problem for each `NAME=value`, or for the name alone if the value is not repeated."""
    with pytest.raises(InvalidSettings) as refusal:
        load_settings(settings_class)
    return dict(line.split(": ", 1) for line in str(refusal.value).splitlines())
