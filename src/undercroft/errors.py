"""The errors the node raises on purpose. What each becomes on the wire is said in `api/errors.py`."""


class UndercroftError(Exception):
    """Something the node foresaw. The message says what is wrong, with which value, and what to do."""


class SettingsError(UndercroftError):
    """A setting or an option is wrong, or unknown."""


class WrongSettingsError(SettingsError):
    """The node's settings are wrong; the message lists all that is."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        """What is wrong, one by one."""
        many = "settings" if len(problems) > 1 else "setting"
        super().__init__(f"{len(problems)} wrong {many}: " + "; ".join(problems))


class DataDirectoryError(UndercroftError):
    """The data directory cannot be used as it is."""


def unusable_directory(path: object, error: OSError) -> DataDirectoryError:
    """What to say when the system refuses something below the data directory."""
    in_the_way = isinstance(error, FileExistsError | NotADirectoryError)
    return DataDirectoryError(
        f"cannot use {error.filename or path}: {'it is no directory' if in_the_way else error.strerror}; "
        "choose another data directory or mend its permissions"
    )


class ListenError(UndercroftError):
    """The address cannot be listened on."""


class DatabaseFileError(UndercroftError):
    """A database file is damaged, foreign, or of a newer version. It was left untouched."""


class DatabaseLockedError(UndercroftError):
    """Another process keeps a database locked for longer than the retries last."""


class ClosedError(UndercroftError):
    """Something was used after it was closed, or before it was opened."""


class BufferFullError(UndercroftError):
    """A buffer is at its bound and found no room in time. The event was not accepted."""


class CommitTimeoutError(UndercroftError):
    """A row was not committed in time. It is still in the buffer and may be committed later."""


class RowRefusedError(UndercroftError):
    """The database refuses this very row. It was set aside; the rest of its batch was committed."""


class InvalidKeyError(UndercroftError):
    """A component of a key is not safe to use as a file name."""


class CapacityError(UndercroftError):
    """The artifact does not fit on the disk now."""


class TooLargeError(UndercroftError):
    """The artifact or body is larger than the node ever accepts."""


class DigestMismatchError(UndercroftError):
    """The bytes that arrived are not those the client announced."""


class DamagedArtifactError(UndercroftError):
    """The bytes of an artifact on disk are not those that were stored."""


class IncompleteBodyError(UndercroftError):
    """The body ended before its declared length, or the client went away."""


class BodyTimeoutError(UndercroftError):
    """The client stopped sending its body."""


class BadRequestError(UndercroftError):
    """A parameter or a body of a request is missing or malformed."""


class UnauthenticatedError(UndercroftError):
    """Who asks did not say who they are, or not in a way that counts."""


class ForbiddenError(UndercroftError):
    """It is known who asks, and they may not."""


class ReadOnlyError(ForbiddenError):
    """Somebody who may only read wants to write."""


class AccessUnknownError(UndercroftError):
    """Whoever knows what a caller may do could not be asked."""


class UnknownUploadError(UndercroftError):
    """There is no such upload in parts: completed, removed, of another project, or never begun."""


class SiblingError(UndercroftError):
    """Another worker process, which alone could do this, is not there now."""


class PartsTooLargeError(UndercroftError):
    """The parts of an upload have more bytes together than the node accepts for one artifact."""


class ObjectStoreError(UndercroftError):
    """The object store could not be asked, or did not do what it was asked: nothing is known.

    `throttled` says that it wants fewer requests (429, 503, SlowDown) or did not answer in time.
    """

    def __init__(self, message: str, *, throttled: bool = False) -> None:
        super().__init__(message)
        self.throttled = throttled


class RowsLostError(UndercroftError):
    """Rows that were accepted could be neither committed nor spilled."""
