"""The answers of PROPFIND as XML."""

import xml.etree.ElementTree as ET

import pytest

from undercroft.api.webdav_xml import Resource, multistatus


@pytest.mark.parametrize(
    ("modified", "shown"),
    [
        (0.0, "Thu, 01 Jan 1970 00:00:00 GMT"),
        (1_000_000_000.9, "Sun, 09 Sep 2001 01:46:40 GMT"),
        (253_402_300_799, "Fri, 31 Dec 9999 23:59:59 GMT"),
        # Of files that somebody else has touched.
        (253_402_300_800, "Thu, 01 Jan 1970 00:00:00 GMT"),
        (1e18, "Thu, 01 Jan 1970 00:00:00 GMT"),
        (-1.0, "Thu, 01 Jan 1970 00:00:00 GMT"),
    ],
)
def test_every_time_a_file_can_have_is_a_date(modified: float, shown: str) -> None:
    body = ET.fromstring(multistatus([Resource("/a", 1, modified)]))
    assert body.findtext("*/*/*/{DAV:}getlastmodified") == shown
