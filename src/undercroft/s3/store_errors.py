"""What an exception of `obstore` says, which has no attributes: its text is read, here and nowhere else.

A text is a sentence and, after `Debug source:`, the error as Rust prints it. Only the second part is
read: there whatever a server sent is one quoted line, so that no body looks like a field. URLs and bodies
stay out of the reason, because they may hold credentials.
"""

import re
from http import HTTPStatus
from typing import NamedTuple

from obstore.exceptions import BaseError

STORE_ERRORS = (BaseError, OSError)
"""What `obstore` raises when a request fails."""

_DEBUG_MARK = "\n\nDebug source:\n"
_STATUS = re.compile(r"^\s+status: (\d{3}),$", re.MULTILINE)
_BODY = re.compile(r'^\s+body: (?:Some\(\s+)?"(.*)",$', re.MULTILINE)
_CODE_IN_BODY = re.compile(r"<Code>([A-Za-z0-9]{1,60})</Code>")
_CODE = re.compile(r'^\s+code: "([A-Za-z0-9]{1,60})",$', re.MULTILINE)
_MESSAGE = re.compile(r'^\s+(?:message|error): "((?:[^"\\]|\\.){1,200})",$', re.MULTILINE)
_TIMED_OUT = re.compile(r"^\s+kind: (?:Timeout|TimedOut),$", re.MULTILINE)
_URL = re.compile(r"\w+://\S+")

_KINDS = (
    ("IncompleteBody", "the body ended early"),
    ("IncompleteMessage", "the connection ended before an answer"),
    ("NotPartial", "a range was asked for, something else came"),
    ("InvalidCertificate", "the certificate is not trusted"),
    ("StartTooLarge", "the range begins after the end"),
)
_ABSENT_CODES = {"NoSuchKey", "NoSuchVersion", "BlobNotFound"}
_NO_BUCKET_CODES = {"NoSuchBucket", "ContainerNotFound"}
_THROTTLE_CODES = {
    "SlowDown",
    "RequestTimeout",
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
    "TooManyRequests",
    "ServerBusy",
    "OperationTimedOut",
}
_THROTTLE_STATUSES = {408, 429, 503, 504}
_REGION_CODES = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}


class Failure(NamedTuple):
    """Why a request failed.

    `reason` is one line without credentials; `status` of HTTP, None if there was no answer;
    `code` is the provider's name of the error.
    """

    reason: str
    status: int | None
    code: str | None
    throttled: bool
    body_is_empty: bool

    @property
    def says_absent(self) -> bool:
        """The store was asked and has no such object."""
        return self.status == HTTPStatus.NOT_FOUND and self.code in _ABSENT_CODES

    @property
    def may_be_absent(self) -> bool:
        """The object is not there, or the bucket: what came does not say which.

        So it is with an answer without a body, and with one of many deletes in one request to Azure.
        """
        if self.code == "404":
            return True
        return self.status == HTTPStatus.NOT_FOUND and self.code is None and self.body_is_empty

    @property
    def is_about_settings(self) -> bool:
        """Asking again helps as little as waiting: bucket, region, credentials or rights are wrong."""
        return self.status in (401, 403, 404) or self.code in _NO_BUCKET_CODES or self.is_about_region

    @property
    def is_about_region(self) -> bool:
        """The bucket is elsewhere."""
        return self.status == HTTPStatus.MOVED_PERMANENTLY or self.code in _REGION_CODES


def read_failure(error: Exception) -> Failure:
    """Reads the text of an exception out of `STORE_ERRORS`."""
    sentence, _, debug = str(error).rpartition(_DEBUG_MARK)
    status = _first(_STATUS, debug)
    if status == "200":  # S3 may begin with it and find out only then that it cannot
        status = None
    body = _BODY.search(debug)
    code = (_first(_CODE_IN_BODY, body[1]) if body else None) or _first(_CODE, debug)
    if code is None and "inner: BareRedirect" in debug:
        code = "PermanentRedirect"
    timed_out = _TIMED_OUT.search(debug) is not None
    throttled = timed_out or code in _THROTTLE_CODES or int(status or 0) in _THROTTLE_STATUSES
    return Failure(
        reason=_reason(sentence or debug, debug, status, code, timed_out=timed_out),
        status=int(status) if status else None,
        code=code,
        throttled=throttled,
        body_is_empty=body is not None and not body[1],
    )


def ignores_ranges(error: Exception) -> bool:
    """The store sent something, but not the range it was asked for."""
    return str(error).rpartition(_DEBUG_MARK)[2].rstrip().endswith("source: NotPartial,\n}")


def _reason(sentence: str, debug: str, status: str | None, code: str | None, *, timed_out: bool) -> str:
    if status is not None:
        known = {int(each): each.phrase for each in HTTPStatus}
        return " ".join(filter(None, (status, known.get(int(status)), f"({code})" if code else None)))
    if code is not None:
        return code
    if timed_out:
        return "timed out"
    for kind, meaning in _KINDS:
        if kind in debug:
            return meaning
    messages: list[str] = _MESSAGE.findall(debug)
    text = messages[-1] if messages else sentence.partition("\n")[0]
    return " ".join(_URL.sub("…", text).split())[:200]


def _first(pattern: re.Pattern[str], text: str) -> str | None:
    found = pattern.search(text)
    return found[1] if found else None
