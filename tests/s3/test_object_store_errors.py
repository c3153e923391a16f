"""The texts of obstore, word for word as it writes them, and what is read in them."""

import pytest
from obstore.exceptions import GenericError

from undercroft.s3.store_errors import ignores_ranges, read_failure

BODY = '<?xml version=\\"1.0\\"?>\\n<Error><Code>{}</Code><Message>secret</Message></Error>'


def request_error(inner: str) -> str:
    """As obstore 0.12 words a request that failed."""
    return f"""Generic S3 error: Error performing GET http://host/b/k in 1ms - something

Debug source:
Generic {{
    store: "S3",
    source: RetryError(
        RetryErrorImpl {{
            method: GET,
            uri: Some(
                http://host/b/k?sig=secret,
            ),
            retries: 0,
{inner}
        }},
    ),
}}"""


def status(number: int, body: str) -> str:
    lines = f'                body: Some(\n                    "{body}",\n                ),'
    return request_error(
        f"            inner: Status {{\n                status: {number},\n{lines}\n            }},"
    )


def connection(kind: str, source: str) -> str:
    return request_error(
        "            inner: Http(\n                HttpError {\n"
        f"                    kind: {kind},\n{source}\n                }},\n            ),"
    )


OS = """                                Os {{
                                    code: 1,
                                    kind: {0},
                                    message: "{0} it is",
                                }},"""
DNS = """                                Custom {
                                    kind: Uncategorized,
                                    error: "failed to lookup address information: unknown",
                                },"""
ELAPSED = """                                Custom {
                                    kind: TimedOut,
                                    error: Elapsed(
                                        (),
                                    ),
                                },"""
BODY_CUT = """Generic S3 error: HTTP error: request or response body error

Debug source:
Generic {
    store: "S3",
    source: HttpError {
        kind: Interrupted,
        source: reqwest::Error {
            kind: Body,
            source: hyper::Error(
                Body,
                Custom {
                    kind: UnexpectedEof,
                    error: IncompleteBody,
                },
            ),
        },
    },
}"""
IN_200 = request_error(
    "            inner: Response {\n                status: 200,\n"
    f'                body: "{BODY.format("SlowDown")}",\n            }},'
)
DELETE_FAILED = """Generic S3 error: DeleteObjects request failed for key a: m (code: InternalError)

Debug source:
Generic {
    store: "S3",
    source: DeleteFailed {
        path: "a",
        code: "InternalError",
        message: "m",
    },
}"""
LOCAL = """Generic LocalFileSystem error: Unable to copy data to file: full

Debug source:
Generic {
    store: "LocalFileSystem",
    source: UnableToCopyDataToFile {
        source: Os {
            code: 28,
            kind: StorageFull,
            message: "No space left on device",
        },
    },
}"""
DECEIT = 'x\\n                status: 503,\\n <Code>No Code</Code> kind: Timeout, message: \\"fake\\"'


@pytest.mark.parametrize(
    ("text", "reason", "throttled"),
    [
        (status(429, ""), "429 Too Many Requests", True),
        (status(503, BODY.format("SlowDown")), "503 Service Unavailable (SlowDown)", True),
        (status(503, "<html>"), "503 Service Unavailable", True),
        (status(400, BODY.format("RequestTimeout")), "400 Bad Request (RequestTimeout)", True),
        (status(500, BODY.format("InternalError")), "500 Internal Server Error (InternalError)", False),
        (status(500, DECEIT), "500 Internal Server Error", False),
        (status(504, ""), "504 Gateway Timeout", True),
        (status(403, BODY.format("AccessDenied")), "403 Forbidden (AccessDenied)", False),
        (status(401, ""), "401 Unauthorized", False),
        (status(599, ""), "599", False),
        (IN_200, "SlowDown", True),
        (DELETE_FAILED, "InternalError", False),
        (connection("Connect", OS.format("ConnectionRefused")), "ConnectionRefused it is", False),
        (connection("Connect", DNS), "failed to lookup address information: unknown", False),
        (connection("Timeout", ELAPSED), "timed out", True),
        (
            connection("Request", "hyper::Error(IncompleteMessage)"),
            "the connection ended before an answer",
            False,
        ),
        (connection("Connect", "InvalidCertificate(UnknownIssuer)"), "the certificate is not trusted", False),
        (BODY_CUT, "the body ended early", False),
        (LOCAL, "No space left on device", False),
        (request_error("            inner: BareRedirect,"), "PermanentRedirect", False),
        ("something new at http://host/?sig=secret\nand more", "something new at …", False),
        ("", "", False),
    ],
)
def test_reading(text: str, reason: str, throttled: bool) -> None:
    failure = read_failure(GenericError(text))
    assert (failure.reason, failure.throttled) == (reason, throttled)
    assert "secret" not in failure.reason


@pytest.mark.parametrize(
    ("text", "says_absent", "may_be_absent", "is_about_settings"),
    [
        (status(404, BODY.format("NoSuchKey")), True, False, True),
        (status(404, BODY.format("BlobNotFound")), True, False, True),
        (status(404, ""), False, True, True),
        (status(404, BODY.format("NoSuchBucket")), False, False, True),
        (status(404, BODY.format("ContainerNotFound")), False, False, True),
        (status(404, "<html>not found</html>"), False, False, True),
        (status(500, BODY.format("NoSuchKey")), False, False, False),
        (DELETE_FAILED.replace("InternalError", "404"), False, True, False),
        (DELETE_FAILED, False, False, False),
        (status(403, ""), False, False, True),
        (request_error("            inner: BareRedirect,"), False, False, True),
        (BODY_CUT, False, False, False),
    ],
)
def test_absent_or_not(text: str, says_absent: bool, may_be_absent: bool, is_about_settings: bool) -> None:
    failure = read_failure(GenericError(text))
    assert (failure.says_absent, failure.may_be_absent) == (says_absent, may_be_absent)
    assert failure.is_about_settings == is_about_settings


def test_ranges_that_are_ignored() -> None:
    text = 'x\n\nDebug source:\nGeneric {\n    store: "S3",\n    source: NotPartial,\n}'
    assert ignores_ranges(GenericError(text))
    assert not ignores_ranges(GenericError(status(500, "source: NotPartial,\\n}")))
    assert "range" in read_failure(GenericError(text)).reason
