"""What the payment application's pages say: English in the sources, other languages as catalogues.

The browser says which languages its user reads; English is what he gets where we have none of them.
A catalogue has every text of templates and of `N_`, which a test checks.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from starlette.requests import Request

ENGLISH: Final = "en"
HEADER_CHARS_MAX: Final = 200


def N_(text: str) -> str:  # the usual name of what marks a text
    """Mark a text that is translated where it is shown."""
    return text


SPANISH: Final[Mapping[str, str]] = MappingProxyType(
    {
        "service desk": "mesa de ayuda",
        "Skip to the content": "Ir al contenido",
        "Your data travel encrypted, and security codes are not kept.": (
            "Sus datos viajan cifrados y no se guardan los códigos de seguridad."
        ),
        "Payments": "Pagos",
        "From (YYYY-MM-DD)": "Desde (AAAA-MM-DD)",
        "Until (YYYY-MM-DD)": "Hasta (AAAA-MM-DD)",
        "Reference": "Referencia",
        "Confirmation": "Confirmación",
        "Payer": "Quien paga",
        "Least amount (minor units)": "Monto mínimo (unidad menor)",
        "Largest amount (minor units)": "Monto máximo (unidad menor)",
        "User": "Usuario",
        "Source": "Fuente",
        "Report": "Reporte",
        "Requests": "Solicitudes",
        "Reports": "Reportes",
        "Times": "Tiempos",
        "Administration": "Administración",
        "Access log": "Accesos",
        "CSV of this filter": "CSV de este filtro",
        "Status": "Estado",
        "All": "Todos",
        "Mode": "Modo",
        "Search": "Buscar",
        "Payment": "Pago",
        "Amount": "Monto",
        "Refunded": "Devuelto",
        "Instrument": "Medio",
        "Newer": "Más nuevos",
        "Older": "Más antiguos",
        "Leave": "Salir",
        "%(count)s payments, %(confirmed)s confirmed for %(amount)s": (
            "%(count)s pagos, %(confirmed)s confirmados por %(amount)s"
        ),
        "fees %(fees)s, refunded %(refunded)s.": "comisiones %(fees)s, devuelto %(refunded)s.",
        "Service desk": "Mesa de ayuda",
        "Created": "Creado",
        "Confirmed": "Confirmado",
        "Application": "Aplicación",
        "What": "Qué",
        "About what": "Sobre qué",
        "Back to the list": "Volver a la lista",
        "Who": "Quién",
        "Outcome": "Resultado",
        "Detail": "Detalle",
        "Second person": "Segunda persona",
        "Keys and return addresses take two persons: one asks, one approves within a day.": (
            "Claves y direcciones de retorno las cambian dos: una pide, otra aprueba en un día."
        ),
        "Requests that wait": "Pedidos que esperan",
        "Request": "Pedido",
        "Data": "Datos",
        "Asked by": "Pidió",
        "Action": "Acción",
        "Keys": "Claves",
        "Key": "Clave",
        "Ask for one more key": "Pedir una clave más",
        "Ask for a new key and the end of the others in seven days": (
            "Pedir una clave nueva y el fin de las otras en siete días"
        ),
        "Return addresses": "Direcciones de retorno",
        "Addresses, one a line": "Direcciones, una por línea",
        "The one that is used without another one": "La que se usa sin otra indicación",
        "Ask for the change of addresses": "Pedir el cambio de direcciones",
        "Users": "Usuarios",
        "Kind": "Tipo",
        "Approve %(name)s": "Aprobar %(name)s",
        "Reject %(name)s": "Rechazar %(name)s",
        "waits for somebody else": "espera a otra persona",
        "Ask for the end of %(name)s": "Pedir el fin de %(name)s",
        "Unlock %(name)s": "Desbloquear %(name)s",
        "From": "Desde",
        "Until": "Hasta",
        "disabled": "inhabilitado",
        "locked": "bloqueado",
        "active": "activo",
        "New key": "Clave nueva",
        "It is shown this once. Hand it over safely to whoever runs the site.": (
            "Se muestra una sola vez. Entréguela por un medio seguro a quien opera el sitio."
        ),
        "Identifier": "Identificador",
        "Back to the administration": "Volver a la administración",
        "Password": "Contraseña",
        "Log in": "Ingresar",
        "Fee": "Comisión",
        "Confirmations": "Confirmaciones",
        "Code": "Código",
        "Confirms": "Confirma",
        "History": "Historia",
        "Told to the site": "Avisos al sitio",
        "Message": "Aviso",
        "Attempts": "Intentos",
        "Last one": "Último",
        "Voids and refunds": "Anulaciones y devoluciones",
        "Approved by": "Aprobó",
        "Ask for": "Pedir",
        "Ask for a void": "Pedir anulación",
        "Amount to refund (minor units)": "Monto a devolver (unidad menor)",
        "Ask for a refund": "Pedir devolución",
        "Payment %(name)s": "Pago %(name)s",
        "in none yet": "todavía en ninguno",
        "Done": "Hecho",
        "Number": "Número",
        "Lines": "Líneas",
        "Repeats": "Repite",
        "Last attempt": "Último intento",
        "File": "Archivo",
        "Cut": "Corte",
        "Summary of the year:": "Resumen del año:",
        "Requests to be approved": "Solicitudes por aprobar",
        "Times, people left out": "Tiempos, sin contar a las personas",
        "Above the budget": "Fuera de plazo",
        "By step": "Por paso",
        "Step": "Paso",
        "Times taken": "Veces",
        "Back to the reports": "Volver a los reportes",
        "Currency": "Moneda",
        "Count": "Cantidad",
        "Fees": "Comisiones",
        "Year %(year)s": "Año %(year)s",
        "By date of %(zone)s": "Por fecha de %(zone)s",
        "Log in to pay": "Ingresar para pagar",
        "Cancel and go back": "Cancelar y volver",
        "(required)": "(obligatorio)",
        "Payment data": "Datos del pago",
        "Name": "Nombre",
        "E-mail": "Correo electrónico",
        "Document": "Documento",
        "Card number": "Número de tarjeta",
        "Expiry (MM/YY)": "Vencimiento (MM/AA)",
        "Security code": "Código de seguridad",
        "Name on the card": "Nombre en la tarjeta",
        "Bank": "Banco",
        "Account number": "Número de cuenta",
        "Holder": "Titular",
        "Document of the holder": "Documento del titular",
        "or telephone": "o teléfono",
        "Code of the app": "Código de la app",
        "Account": "Cuenta",
        "Some data must be corrected:": "Hay datos para corregir:",
        "What is paid": "Qué se paga",
        "Who pays": "Quién paga",
        "What is paid with": "Con qué se paga",
        "Choose what to pay with.": "Elija un medio de pago.",
        "Continue": "Continuar",
        "Amount in %(currency)s": "Monto en %(currency)s",
        "Without points, or with commas for thousands; a point for decimals.": (
            "Sin puntos, o con puntos para los miles. Coma para los decimales."
        ),
        "Without points, or with commas for thousands.": "Sin puntos, o con puntos para los miles.",
        "Data of: %(what)s": "Datos de: %(what)s",
        "Your payment is pending": "Su pago está pendiente",
        "Keep these numbers: they are your receipt.": "Guarde estos números: son su comprobante.",
        "The payment was not made": "El pago no se realizó",
        "Confirmation number": "Número de confirmación",
        "Authorisation of the source": "Autorización de la fuente",
        "Paid with": "Medio de pago",
        "Total": "Total",
        "Send by e-mail": "Enviar por correo",
        "Renew now": "Actualizar ahora",
        "Payment pending": "Pago pendiente",
        "Do not pay again.": "No vuelva a pagar.",
        "We are finding out the result. This page renews itself every 5 seconds.": (
            "Estamos confirmando el resultado. Esta página se actualiza sola cada 5 segundos."
        ),
        "Payment confirmed": "Pago confirmado",
        "Payment voided": "Pago anulado",
        "Payment refunded": "Pago devuelto",
        "Nothing was charged.": "No se realizó ningún cobro.",
        "The operation was undone.": "La operación se deshizo.",
        "To print this, use your browser's command to print.": (
            "Para imprimir, use la orden Imprimir de su navegador."
        ),
        "Date": "Fecha",
        "Back to the site": "Volver al sitio",
        "Check and pay": "Revisar y pagar",
        "Check before you pay": "Revise antes de pagar",
        "Correct the data": "Corregir los datos",
        "Pay %(total)s": "Pagar %(total)s",
        "Unlock the user": "Desbloquear el usuario",
        "Done: you can try again.": "Listo: ya puede intentar otra vez.",
        "If it was you who tried to log in and was locked, you can unlock your user now.": (
            "Si usted pidió ingresar y su usuario quedó bloqueado, puede desbloquearlo ahora."
        ),
        "Unlock": "Desbloquear",
        "Started": "Iniciado",
        "In progress": "En proceso",
        "Declined": "Rechazado",
        "Pending": "Pendiente",
        "Voided": "Anulado",
        "Cancelled": "Cancelado",
        "Without effect": "Sin efecto",
        "Insufficient funds.": "Fondos insuficientes.",
        "What you pay with is not valid.": "El medio de pago no es válido.",
        "The limit of what you pay with was exceeded.": "Se superó el límite del medio de pago.",
        "What you pay with could not be verified.": "No se pudo verificar el medio de pago.",
        "What you pay with does not allow this.": "El medio de pago no permite esta operación.",
        "The payment could not be processed.": "No se pudo procesar el pago.",
        "The session ended before the payment.": "La sesión venció antes de pagar.",
        "What the site asked for is not accepted any more.": (
            "Lo que pidió el sitio ya no se acepta."
        ),
        "Voids": "Anulaciones",
        "Refunds": "Devoluciones",
        "Fill this in.": "Complete este dato.",
        "Check this: it has not the expected form.": (
            "Revise este dato: no tiene la forma esperada."
        ),
        "The text is too long.": "El texto es demasiado largo.",
        "The amount is out of what is allowed.": "El monto está fuera de lo permitido.",
        "The card has expired.": "La tarjeta está vencida.",
        "The items do not make up the total.": "Los ítems no suman el total.",
        "This is not accepted here.": "Este valor no se acepta aquí.",
        "This reference was used before.": "Esta referencia ya se usó.",
        "Not a valid request": "Solicitud no válida",
        "We could not understand the request.": "No pudimos entender la solicitud.",
        "Request refused": "Solicitud rechazada",
        "For your safety this request was not accepted.": (
            "Por seguridad, esta solicitud no se aceptó."
        ),
        "Page not found": "Página no encontrada",
        "The address does not exist, was used before, or is too old.": (
            "La dirección no existe, ya se usó o venció."
        ),
        "This page is out of date": "Esta página ya no está vigente",
        "You opened a newer page of this payment.": "Abrió otra página más nueva de este pago.",
        "The session has ended": "La sesión terminó",
        "The session ran out or was closed. No new payment was made.": (
            "La sesión venció o ya se cerró. No se realizó ningún pago nuevo."
        ),
        "Request too long": "Solicitud demasiado larga",
        "You sent more data than is accepted.": "Envió más datos de los que se aceptan.",
        "Too many attempts": "Demasiados intentos",
        "Wait a minute and try again.": "Espere un minuto y vuelva a intentar.",
        "The service is busy": "Servicio ocupado",
        "Try again in some seconds. No payment was made.": (
            "Vuelva a intentar en unos segundos. No se realizó ningún pago."
        ),
        "Error": "Error",
        "We could not complete the request.": "No pudimos completar la solicitud.",
        "Card": "Tarjeta",
        "Bank account": "Cuenta bancaria",
        "Dimo": "Dimo",
        "Local account": "Cuenta local",
        "Go to the start": "Ir al inicio",
        "Go to the present page": "Ir a la página actual",
        "Go to the desk": "Ir a la mesa",
        "Finished": "Terminó",
        "The payment was cancelled. Nothing was charged.": (
            "El pago se canceló. No se realizó ningún cobro."
        ),
        "You can close this window.": "Puede cerrar esta ventana.",
        "Too many attempts. Wait a minute.": "Demasiados intentos. Espere un minuto.",
        "The service is busy. Try again in some seconds.": (
            "El servicio está ocupado. Intente otra vez en unos segundos."
        ),
        "The data are not correct. Check them and try again.": (
            "Los datos no son correctos. Revise e intente otra vez."
        ),
        "The data are not correct.": "Los datos no son correctos.",
        "Wait a moment and try again.": "Espere un momento e intente otra vez.",
        "Payment receipt": "Comprobante de pago",
        "Check the filter: %(name)s.": "Revise el filtro: %(name)s.",
        "The list is still being prepared.": "La lista todavía se está preparando.",
        "The payment is not in a state that allows it.": (
            "El pago no está en un estado que lo permita."
        ),
        "Who asked for it may not approve it: it takes another person.": (
            "Quien lo pidió no puede aprobarlo: hace falta otra persona."
        ),
        "The amount is more than what is left to refund.": (
            "El monto supera lo que queda por devolver."
        ),
        "One more key": "Una clave más",
        "New key, end of the others": "Clave nueva, fin de las otras",
        "End of a key": "Fin de una clave",
        "That request was decided, has lapsed, or cannot be done any more.": (
            "Ese pedido ya se decidió, venció o ya no se puede cumplir."
        ),
        "It takes another person, and an administrator.": (
            "Hace falta otra persona, y que sea de administración."
        ),
        "Check the data: whole https addresses, without query, one a line.": (
            "Revise los datos: direcciones https completas, sin consulta, una por línea."
        ),
        "Too many requests wait, or there are too many keys.": (
            "Ya esperan demasiados pedidos, o hay demasiadas claves."
        ),
    }
)
CATALOGUES: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {ENGLISH: MappingProxyType({}), "es": SPANISH}
)


def language_of(request: Request) -> str:
    """The first language of the browser's list, by its weights, that there is a catalogue of."""
    wanted = []
    for place, part in enumerate(
        request.headers.get("accept-language", "")[:HEADER_CHARS_MAX].split(",")
    ):
        name, _, weight = part.strip().partition(";q=")
        try:
            share = float(weight or "1")
        except ValueError:
            continue
        wanted.append((-share, place, name.partition("-")[0].lower()))
    return next(
        (name for share, _, name in sorted(wanted) if share and name in CATALOGUES), ENGLISH
    )


def told(text: str, language: str) -> str:
    """A text in a language; in English where the catalogue has it not."""
    return CATALOGUES[language].get(text, text)
