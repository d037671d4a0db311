"""The framed session protocol: terminals to `red`, `red` to `sicoop`.

Sans-I/O: `Acceptor` and `Initiator` take bytes and give messages and bytes. They authenticate the
peer, keep the session key and the counters, answer echoes, and refuse what is malformed.
"""

from protocols.session.acceptor import Acceptor
from protocols.session.codec import SessionCodec
from protocols.session.connection import BAD_MAC
from protocols.session.guard import SignOnGuard
from protocols.session.initiator import Initiator
from protocols.session.keys import PeerKey
from protocols.session.refusals import BadRequest
from protocols.session.vocabulary import NETWORK, TERMINAL, Encoding, Vocabulary

__all__ = [
    "BAD_MAC",
    "NETWORK",
    "TERMINAL",
    "Acceptor",
    "BadRequest",
    "Encoding",
    "Initiator",
    "PeerKey",
    "SessionCodec",
    "SignOnGuard",
    "Vocabulary",
]
