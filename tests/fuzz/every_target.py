"""Every parser that is fuzzed: add yours to a module beside this one, and that here."""

from tests.fuzz import bodies, files, headers, paths, requests

TARGETS = (*paths.TARGETS, *headers.TARGETS, *bodies.TARGETS, *files.TARGETS, *requests.TARGETS)
