"""The sites' API as an OpenAPI 3.0 document, served with it and tested against it."""

from typing import Any, Final

STATUSES: Final = (
    "CREATED", "SUBMITTED", "CONFIRMED", "DECLINED", "PENDING", "VOIDED", "REFUNDED",
    "CANCELLED", "FAILED",
)  # fmt: skip
REASONS: Final = (
    "funds", "instrument", "limit", "authentication", "not_allowed", "technical", "expired",
    "invalid",
)  # fmt: skip
CODES: Final = (
    "malformed", "authentication_failed", "not_allowed", "not_found", "client_ref_conflict",
    "wrong_state", "too_large", "media_type", "invalid_fields", "rate_limited", "overloaded",
)  # fmt: skip

Node = dict[str, Any]


def _text(**more: Any) -> Node:
    return {"type": "string", **more}


def _object(required: tuple[str, ...], **properties: Node) -> Node:
    value: Node = {"type": "object", "properties": properties}
    return {**value, "required": list(required)} if required else value


AMOUNT: Final = {"type": "integer", "minimum": 0, "maximum": 999_999_999_999}
REF: Final = _text(pattern="^[A-Za-z0-9._:-]{1,64}$")

SCHEMAS: Final[Node] = {
    "Error": _object(
        ("error", "request_id"),
        error=_object(
            ("code", "message", "fields"),
            code=_text(enum=list(CODES)),
            message=_text(),
            fields={
                "type": "array",
                "items": _object(("name", "reason"), name=_text(), reason=_text()),
            },
        ),
        request_id=_text(),
    ),
    "Confirmations": _object(
        ("cip", "source"),
        cip=_text(pattern="^[0-9A-Z]{4}-[0-9A-Z]{4}-[0-9A-Z]{4}$"),
        source=_text(),
    ),
    "Payment": _object(
        ("payment_id", "client_ref", "status", "amount", "fee", "currency", "at"),
        payment_id=_text(pattern="^pay_[0-9A-Z]{26}$"),
        client_ref=REF,
        status=_text(enum=list(STATUSES)),
        amount=AMOUNT,
        fee=AMOUNT,
        currency=_text(pattern="^[A-Z]{3}$"),
        instrument=_text(description="masked"),
        confirmations={"$ref": "#/components/schemas/Confirmations"},
        refunded=AMOUNT,
        reason=_text(enum=list(REASONS)),
        poll=_text(),
        retry_after={"type": "integer"},
        at=_text(),
        request_id=_text(),
    ),
    "Adjustment": _object(
        ("adjustment_id", "payment_id", "client_ref", "kind", "amount", "currency", "status"),
        adjustment_id=_text(),
        payment_id=_text(),
        client_ref=REF,
        kind=_text(enum=["void", "refund"]),
        amount=AMOUNT,
        currency=_text(),
        status=_text(enum=["REQUESTED", "REJECTED", "RUNNING", "DONE", "REFUSED"]),
        confirmations={"$ref": "#/components/schemas/Confirmations"},
        reason=_text(),
        at=_text(),
        request_id=_text(),
    ),
    "Transaction": _object(
        ("amount", "currency", "instrument"),
        amount={**AMOUNT, "minimum": 1},
        currency=_text(pattern="^[A-Z]{3}$"),
        items={
            "type": "array",
            "maxItems": 100,
            "items": _object(
                ("code", "amount"),
                code=_text(maxLength=32),
                amount={**AMOUNT, "minimum": 1},
                account=_text(maxLength=64),
            ),
        },
        payer=_object(
            (),
            name=_text(maxLength=100),
            email=_text(maxLength=254),
            phone=_text(maxLength=32),
            document=_text(maxLength=32),
        ),
        instrument=_object(
            ("type",),
            type=_text(enum=["card", "account", "dimo", "ledger"]),
            pan=_text(),
            expiry=_text(),
            cvv=_text(),
            name=_text(),
            bank=_text(),
            number=_text(),
            holder=_text(),
            document=_text(),
            phone=_text(),
            token=_text(),
            account=_text(),
        ),
        custom={"type": "object"},
    ),
    "PaymentRequest": _object(
        ("client_ref", "transaction"),
        application_id=_text(),
        user_id=_text(),
        password=_text(format="password"),
        client_ref=REF,
        transaction={"$ref": "#/components/schemas/Transaction"},
        sent_at=_text(),
    ),
    "VoidRequest": _object(("client_ref",), client_ref=REF),
    "RefundRequest": _object(
        ("client_ref", "amount"), client_ref=REF, amount={**AMOUNT, "minimum": 1}
    ),
    "SessionRequest": _object(
        ("application_id", "client_ref", "return_url", "ts", "nonce", "key_id", "sig"),
        application_id=_text(),
        client_ref=REF,
        amount={**AMOUNT, "minimum": 1},
        currency=_text(),
        fields={"type": "object"},
        return_url=_text(),
        ts={"type": "integer"},
        nonce=_text(minLength=16, maxLength=64),
        key_id=_text(),
        sig=_text(pattern="^[0-9a-f]{64}$"),
    ),
    "SessionAnswer": _object(
        ("session", "url", "expires_in"),
        session=_text(),
        url=_text(),
        expires_in={"type": "integer"},
        request_id=_text(),
    ),
    "SessionState": _object(
        ("session", "state"),
        session=_text(),
        state=_text(enum=["issued", "login", "open", "closed", "expired"]),
        payment={"$ref": "#/components/schemas/Payment"},
        request_id=_text(),
    ),
    "Status": _object(
        ("service", "sources"),
        service=_text(enum=["up", "busy"]),
        sources={"type": "object", "additionalProperties": _text(enum=["up", "down"])},
        at=_text(),
        request_id=_text(),
    ),
}

WHAT: Final = {
    "200": "present state", "201": "confirmed, or done", "202": "not known yet: poll",
    "400": "cannot be read", "401": "authentication failed, whatever the cause",
    "402": "declined", "403": "mode or role not allowed", "404": "not found",
    "405": "no such method", "409": "other data under this reference, or wrong state",
    "413": "too large", "415": "media type", "422": "fields not valid", "429": "too many requests",
    "503": "overloaded, nothing stored",
}  # fmt: skip


def _answers(good: dict[str, str], *errors: str) -> Node:
    found: Node = {
        status: _content(f"#/components/schemas/{schema}", WHAT[status])
        for status, schema in good.items()
    }
    for status in errors:
        found[status] = _content("#/components/schemas/Error", WHAT[status])
    return found


def _content(ref: str, text: str) -> Node:
    return {
        "description": text,
        "content": {"application/json": {"schema": {"$ref": ref}}},
    }


def _asked(schema: str) -> Node:
    value = {"schema": {"$ref": f"#/components/schemas/{schema}"}}
    return {"required": True, "content": {"application/json": value}}


def _path(name: str) -> Node:
    return {"name": name, "in": "path", "required": True, "schema": _text(minLength=1)}


USUAL: Final = ("401", "403", "429", "503")
BODY: Final = ("400", "413", "415", "422")


def document() -> Node:
    """The document; a new one at each call."""
    client_ref = {"name": "client_ref", "in": "query", "required": True, "schema": REF}
    secured: list[Node] = [{"credentials": []}, {"signature": []}]
    payment: Node = {"security": secured, "tags": ["gateway"]}
    decided = {"201": "Payment", "202": "Payment", "402": "Payment"}
    adjusted = {"201": "Adjustment", "202": "Adjustment"}
    base = "/cip/v1/gateway/payments"
    paths: Node = {
        base: {
            "post": {
                **payment, "operationId": "pay", "requestBody": _asked("PaymentRequest"),
                "responses": _answers(decided, *USUAL, *BODY, "409"),
            },
            "get": {
                **payment, "operationId": "find", "parameters": [client_ref],
                "responses": _answers({"200": "Payment"}, *USUAL, "404", "422"),
            },
        },
        base + "/{payment_id}": {
            "get": {
                **payment, "operationId": "show", "parameters": [_path("payment_id")],
                "responses": _answers({"200": "Payment"}, *USUAL, "404"),
            }
        },
        "/cip/v1/partial/sessions": {
            "post": {
                "tags": ["partial"], "operationId": "openSession",
                "requestBody": _asked("SessionRequest"),
                "responses": _answers({"201": "SessionAnswer"}, *USUAL, *BODY, "409"),
            }
        },
        "/cip/v1/partial/sessions/{session}": {
            "get": {
                "tags": ["partial"], "operationId": "showSession", "parameters": [_path("session")],
                "security": [{"signature": []}],
                "responses": _answers({"200": "SessionState"}, *USUAL),
            }
        },
        "/cip/v1/status": {
            "get": {
                "operationId": "status", "responses": _answers({"200": "Status"}, "503"),
            }
        },
        "/cip/v1/openapi.json": {
            "get": {
                "operationId": "describe",
                "responses": {
                    "200": {
                        "description": "this document",
                        "content": {"application/json": {"schema": {"type": "object"}}},
                    }
                },
            }
        },
    }  # fmt: skip
    for kind, schema in (("void", "VoidRequest"), ("refund", "RefundRequest")):
        paths[f"{base}/{{payment_id}}/{kind}"] = {
            "post": {
                **payment, "operationId": kind, "parameters": [_path("payment_id")],
                "requestBody": _asked(schema),
                "responses": _answers(adjusted, *USUAL, *BODY, "404", "409"),
            }
        }  # fmt: skip
    return {
        "openapi": "3.0.3",
        "info": {"title": "CIP", "version": "1", "description": "Payments in three modes."},
        "paths": paths,
        "components": {"schemas": SCHEMAS, "securitySchemes": _schemes()},
    }


def _schemes() -> Node:
    return {
        "credentials": {
            "type": "apiKey", "in": "header", "name": "Authorization",
            "description": "CIP base64(application:user:password)",
        },
        "signature": {
            "type": "apiKey", "in": "header", "name": "CIP-Signature",
            "description": "with CIP-Key, CIP-Timestamp and CIP-Nonce",
        },
    }  # fmt: skip
