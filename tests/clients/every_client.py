"""All build tools that the tests drive through one interface."""

from .bazel_client import BazelBuilds
from .build_client import BuildClient
from .ccache_client import CcacheBuilds
from .gradle_client import GradleClient
from .moon_client import MoonClient
from .nx_client import NxClient
from .rush_client import RushClient
from .sccache_client import SccacheClient
from .turbo_client import TurboClient

CLIENTS: tuple[BuildClient, ...] = (
    BazelBuilds(),
    CcacheBuilds(),
    GradleClient(),
    MoonClient(),
    NxClient(),
    RushClient(),
    SccacheClient(),
    TurboClient(),
)
