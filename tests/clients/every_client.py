"""All build tools that the tests drive through one interface."""

from .build_client import BuildClient
from .gradle_client import GradleClient

CLIENTS: tuple[BuildClient, ...] = (GradleClient(),)
