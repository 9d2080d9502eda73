"""The name of an administrator in the audit log."""

import os
import pwd

from gatehouse.shared.service.administrator import user_name


def test_an_administrator_has_the_name_of_the_operating_system_user() -> None:
    for known in pwd.getpwall():
        assert pwd.getpwnam(user_name(known.pw_uid)).pw_uid == known.pw_uid


def test_a_user_without_a_name_is_named_by_its_number() -> None:
    """A container may run as any user id."""
    unknown = next(uid for uid in range(60_000, 2**31) if uid not in {known.pw_uid for known in pwd.getpwall()})
    assert user_name(unknown) == f"uid:{unknown}"
    assert user_name(os.getuid())
