"""Mail to a locked user, with the link that lets him try again.

SMTP by the standard library, in a thread of its own: it is rare, and nobody waits for it.
"""

import os
import smtplib
import ssl
from email.message import EmailMessage
from typing import Final

import trio

from switch.sections.cip import Mail

SEND_S: Final = 10.0
AT_ONCE: Final = 2
SUBJECT: Final = "Your payments user was locked / Su usuario de pagos quedó bloqueado"
TEXT: Final = """\
There were too many attempts to log in with a wrong password, and your user {user} of {name} is
locked for {minutes} minutes.

If it was you, you can unlock it now; the link works once:

{link}

If it was not you, do nothing, and tell the service desk.

Hubo demasiados intentos de ingreso con una contraseña equivocada, y su usuario {user} de {name}
quedó bloqueado por {minutes} minutos.

Si fue usted, puede desbloquearlo ahora con ese enlace; sirve una sola vez.
Si no fue usted, no haga nada y avise a la mesa de ayuda.
"""


class Mailer:
    """Sends what `[cip.mail]` says how to send, at most `AT_ONCE` at a time."""

    def __init__(self) -> None:
        self._limiter = trio.CapacityLimiter(AT_ONCE)

    async def send(self, mail: Mail, to: str, text: str) -> bool:
        """True once the mail server has taken it."""
        message = EmailMessage()
        message["Subject"] = SUBJECT
        message["From"] = mail.sender
        message["To"] = to
        message.set_content(text)
        try:
            await trio.to_thread.run_sync(
                _send, mail, _password(mail), message, limiter=self._limiter,
                abandon_on_cancel=True,
            )  # fmt: skip
        except (smtplib.SMTPException, OSError, ValueError):
            return False
        return True


def _password(mail: Mail) -> str:
    return os.environ.get(mail.password.partition(":")[2], "") if mail.password else ""


def _send(mail: Mail, password: str, message: EmailMessage) -> None:
    context = ssl.create_default_context() if mail.tls != "none" else None
    if mail.tls == "tls":
        server: smtplib.SMTP = smtplib.SMTP_SSL(
            mail.host, mail.port, timeout=SEND_S, context=context
        )
    else:
        server = smtplib.SMTP(mail.host, mail.port, timeout=SEND_S)
    with server:
        if mail.tls == "starttls":
            server.starttls(context=context)
        if mail.user:
            server.login(mail.user, password)
        server.send_message(message)
