"""What a start looks at and tells people of."""

import asyncio

import structlog

from undercroft.auth.tokens import has_valid_token
from undercroft.database import Database
from undercroft.errors import ObjectStoreError
from undercroft.s3.object_store import ObjectStore
from undercroft.settings_sections import AuthSection, ObjectStoreSection

log = structlog.get_logger(__name__)

# How long a start waits for the object store. Without its answer the node starts all the same.
CHECK_S = 5


async def check_object_store(section: ObjectStoreSection, store: ObjectStore | None) -> None:
    """Raises `SettingsError` for what only settings can be to blame for; an outage is not."""
    in_vain = section.without_effect()
    if in_vain:
        log.warning("object_store_settings_without_url", without_effect=in_vain)
    if store is None:
        return
    try:
        async with asyncio.timeout(CHECK_S):
            await store.check()
    except (ObjectStoreError, TimeoutError) as error:
        reason = str(error) or f"no answer in {CHECK_S} s"
        log.warning("object_store_not_reached", url=section.url, reason=reason)


def tell_who_may_enter(auth: AuthSection, database: Database) -> None:
    """Warns of what somebody may not have meant."""
    tokens = has_valid_token(database)
    if auth.mode == "none" and tokens:
        log.warning("tokens_not_asked_for", why="auth.mode is none: everybody may do everything")
    if auth.mode == "tokens" and not tokens:
        log.warning("no_tokens", why="nobody may write yet: create one with undercroft token create")
    if auth.mode == "none" and auth.anonymous_read:
        log.warning("setting_without_effect", setting="auth.anonymous_read", why="auth.mode is none")
