"""Uploads in parts."""

from undercroft.multipart.bounds import Owner
from undercroft.multipart.uploads import MultipartUploads

__all__ = ["MultipartUploads", "Owner"]
