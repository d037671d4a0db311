"""Times that several flows keep: when a debt is paid again, and until when an annulment is taken.

Source: rule R2 of the acceptance specification (1, 2, 4, 8, 16, 32 s, then every 60 s), case V02.
"""

from switch.calendar import Calendar
from switch.config import Config

RETRIES_S = (1, 2, 4, 8, 16, 32)
RETRY_SLOW_S = 60


def retry_after_s(attempts: int) -> int:
    """Seconds until a debt that was sent `attempts` times without an answer is sent again."""
    return RETRIES_S[attempts - 1] if attempts <= len(RETRIES_S) else RETRY_SLOW_S


def is_stuck(attempts: int) -> bool:
    """True once, when the quick attempts are used up: an operator must be told."""
    return attempts == len(RETRIES_S) + 1


def may_be_annulled(calendar: Calendar, config: Config, business_date: str, now_ns: int) -> bool:
    """True on the operation's own business date, up to the time configured for annulments."""
    today = calendar.business(now_ns)
    if today.iso != business_date:
        return False
    until = config.business.annul_until
    return not until or now_ns < calendar.instant(today.number, until)
