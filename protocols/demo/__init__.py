"""The demo protocol: the smallest complete codec, to be copied when a protocol is added."""

from protocols.demo.codec import DemoCodec
from protocols.demo.messages import AuthorizationReply, AuthorizationRequest, ResponseCode

__all__ = ["AuthorizationReply", "AuthorizationRequest", "DemoCodec", "ResponseCode"]
