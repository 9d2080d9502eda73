"""Distribution of the tests among the processes of pytest-xdist."""

from xdist.scheduler import LoadScopeScheduling


class JourneysInOneProcess(LoadScopeScheduling):
    """One process runs all journeys, and the others run unit tests, because journeys mostly wait for servers.

    It starts with the journeys, as the largest group. The groups of `--dist loadgroup` have no effect: pytest-xdist
    3.8 sets an attribute for them that pytest 9.2 does not read.
    """

    def _split_scope(self, nodeid: str) -> str:
        return "journeys" if nodeid.startswith("tests/journeys/") else nodeid
