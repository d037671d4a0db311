"""States of an operation in each role, and the only moves between them.

Source: the roles' state lists of the acceptance specification (sections 3 and 4 there). A move
that is not in the table is a bug of ours, so it stops the node instead of harming an operation.
"""

from collections.abc import Mapping
from types import MappingProxyType

INICIADA = "INICIADA"
RECHAZO_REGISTRADO = "RECHAZO_REGISTRADO"
REGISTRADA = "REGISTRADA"
ENTREGADA = "ENTREGADA"
ERROR = "ERROR"
ANULADA = "ANULADA"

RECIBIDA = "RECIBIDA"
ENVIADA = "ENVIADA"
RESERVADA = "RESERVADA"
RESPONDIDA = "RESPONDIDA"
CONFIRMADA = "CONFIRMADA"
CAPTURADA = "CAPTURADA"
CONCILIADA = "CONCILIADA"
RECHAZADA = "RECHAZADA"
VENCIDA = "VENCIDA"
REVERSANDO = "REVERSANDO"
REVERSADA = "REVERSADA"
CONFLICTO = "CONFLICTO"
TUMBA = "TUMBA"
DESCONOCIDA = "DESCONOCIDA"

ACTIVA = "ACTIVA"
LIBERADA = "LIBERADA"

NOTHING = ""  # the state of a key that nobody has seen

Moves = Mapping[tuple[str, str], str]

RED: Moves = MappingProxyType(
    {
        (NOTHING, "started"): INICIADA,
        (INICIADA, "approved"): REGISTRADA,
        (INICIADA, "declined"): RECHAZO_REGISTRADO,
        (INICIADA, "failed"): ERROR,
        (REGISTRADA, "delivered"): ENTREGADA,
        (REGISTRADA, "annulled"): ANULADA,
        (ENTREGADA, "annulled"): ANULADA,
    }
)

SICOOP: Moves = MappingProxyType(
    {
        (NOTHING, "received"): RECIBIDA,
        (NOTHING, "reversed"): TUMBA,
        (RECIBIDA, "sent"): ENVIADA,
        (RECIBIDA, "declined"): RECHAZADA,
        (RECIBIDA, "timed_out"): VENCIDA,
        (ENVIADA, "approved"): RESERVADA,
        (ENVIADA, "declined"): RECHAZADA,
        (ENVIADA, "timed_out"): VENCIDA,
        (RESERVADA, "answered"): RESPONDIDA,
        (RESPONDIDA, "confirmed"): CONFIRMADA,
        (CONFIRMADA, "captured"): CAPTURADA,
        (CAPTURADA, "conciliated"): CONCILIADA,
        (RECIBIDA, "reversed"): REVERSANDO,
        (ENVIADA, "reversed"): REVERSANDO,
        (RESERVADA, "reversed"): REVERSANDO,
        (RESPONDIDA, "reversed"): REVERSANDO,
        (REVERSANDO, "released"): REVERSADA,
        # An annulment undoes what was confirmed, by release or by compensation.
        (CONFIRMADA, "annulled"): REVERSADA,
        (CAPTURADA, "annulled"): REVERSADA,
        (RESPONDIDA, "annulled"): REVERSADA,
        # Contradictions between confirm and reverse: nothing moves until people decide.
        (CONFIRMADA, "contradicted"): CONFLICTO,
        (CAPTURADA, "contradicted"): CONFLICTO,
        (CONCILIADA, "contradicted"): CONFLICTO,
        (REVERSANDO, "contradicted"): CONFLICTO,
        (REVERSADA, "contradicted"): CONFLICTO,
        (RECHAZADA, "contradicted"): CONFLICTO,
        (VENCIDA, "contradicted"): CONFLICTO,
        (TUMBA, "contradicted"): CONFLICTO,
        # What two persons decide: it stands as it is posted, is captured anew, stays undone, or is
        # annulled.
        (CONFLICTO, "upheld"): CAPTURADA,
        (CONFLICTO, "captured"): CAPTURADA,
        (CONFLICTO, "left"): REVERSADA,
        (CONFLICTO, "annulled"): REVERSADA,
    }
)

CEIBO: Moves = MappingProxyType(
    {
        (NOTHING, "approved"): ACTIVA,
        (NOTHING, "declined"): RECHAZADA,
        (NOTHING, "released"): TUMBA,
        (ACTIVA, "captured"): CAPTURADA,
        (ACTIVA, "released"): LIBERADA,
        (CAPTURADA, "compensated"): CAPTURADA,
        (LIBERADA, "captured"): CAPTURADA,  # anew, by two persons: the cash was out after all
    }
)


def move(table: Moves, state: str, event: str) -> str:
    """Return the state after `event`.

    An event the table does not allow is our own mistake: the KeyError, which names state and
    event, stops the node.
    """
    return table[state, event]
