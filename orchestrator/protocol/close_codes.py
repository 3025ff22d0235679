"""
The close codes of our WebSockets, all of them: docs/protocol.md, "Close codes".

Those below 3000 are of RFC 6455, section 7.4; those from 4000 on are ours.
"""

from enum import IntEnum


class CloseCode(IntEnum):
    NORMAL = 1000
    GOING_AWAY = 1001
    ABNORMAL = 1006  # how a connection ended that nobody closed; it is never sent
    INVALID_PATH = 1008
    TOO_BIG = 1009
    INTERNAL = 1011
    SERVICE_RESTART = 1012
    NO_CAPACITY = 1013
    UNAUTHORIZED = 4001
    FORBIDDEN = 4003
    TIMEOUT = 4008
    LAG = 4010
    SLOW_READER = 4011
    TOO_FAST = 4029  # audio or messages, for too long
    INVALID_PARAMETER = 4400
    TOO_MANY_SESSIONS = 4429  # of one key, or of one address
