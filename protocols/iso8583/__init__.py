"""ISO 8583: dialects as data, a native codec, framings, and one connection's state.

dialect = Dialect.load("ceibo")
message = dialect.decode(data)
message["11"], message.get("48.03"), message.answer({"39": "00"}, mac=True)
"""

from protocols.iso8583.dialect import Dialect, DialectError, FormatError, Message
from protocols.iso8583.framing import Framing, FramingError

__all__ = ["Dialect", "DialectError", "FormatError", "Framing", "FramingError", "Message"]
