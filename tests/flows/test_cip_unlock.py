"""The mailed link that unlocks a user, with a mail server that takes what real ones take."""

import email
import email.policy
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest
import trio

from switch.sections.cip import is_address
from tests.cip_house import APP, Browser, CipHouse

BASE = "https://pay.example"
ANA = "ana@sof.example"


class MailServer:
    """A mail server on loopback. `refuses`: it takes no recipient."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, str]] = []
        self.refuses = False
        self.port = 0

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        await trio.serve_listeners(self._one, listeners, task_status=task_status)

    async def _one(self, stream: trio.SocketStream) -> None:
        to, data, reading = "", b"", False
        async with stream, aclosing(_lines(stream)) as lines:
            await stream.send_all(b"220 test\r\n")
            async for line in lines:
                if reading and line == b".":
                    reading = False
                    text = email.message_from_bytes(data, policy=email.policy.default)
                    self.taken.append((to, text.get_content()))
                    await stream.send_all(b"250 taken\r\n")
                elif reading:
                    data += line + b"\r\n"
                elif line[:4].upper() == b"RCPT":
                    to = line.decode().partition("<")[2].partition(">")[0]
                    await stream.send_all(b"550 no\r\n" if self.refuses else b"250 ok\r\n")
                elif line[:4].upper() == b"DATA":
                    reading = True
                    await stream.send_all(b"354 go on\r\n")
                elif line[:4].upper() == b"QUIT":
                    await stream.send_all(b"221 bye\r\n")
                    return
                else:
                    await stream.send_all(b"250 ok\r\n")


async def _lines(stream: trio.SocketStream) -> AsyncGenerator[bytes, None]:
    rest = b""
    while data := await stream.receive_some(65_536):
        *lines, rest = (rest + bytes(data)).split(b"\r\n")
        for line in lines:
            yield line


@pytest.fixture
async def mail(nursery: trio.Nursery) -> MailServer:
    server = MailServer()
    await nursery.start(server.run)
    return server


@pytest.fixture
def house(tmp_path: Path, mail: MailServer) -> Iterator[CipHouse]:
    found = CipHouse(
        tmp_path,
        toml=f"""
[cip.mail]
host = "127.0.0.1"
port = {mail.port}
tls = "none"
sender = "pagos@pay.example"
base_url = "{BASE}"
""",
    )
    found.command("cip_user_email", application=APP, user="ana", email=ANA)
    yield found
    found.close()


@asynccontextmanager
async def locked_out(house: CipHouse, user: str = "ana") -> AsyncIterator[httpx.AsyncClient]:
    """Somebody has tried ten wrong passwords of a user."""
    async with house.running() as client:
        browser = Browser(client)
        for _ in range(10):
            answer = await browser.log_in_full(user=user, password="not the right one")
            assert answer.status_code == 401
        assert (await browser.log_in_full(user=user)).status_code == 401
        yield client


async def until(true: partial[bool]) -> None:
    with trio.fail_after(120):
        while not true():  # noqa: ASYNC110
            await trio.sleep(0.01)


def path_in(text: str) -> str:
    found = re.search(rf"{re.escape(BASE)}(/cip/unlock/[0-9a-f]{{32}})\s", text)
    assert found is not None, text
    return found[1]


async def test_a_locked_user_is_sent_a_link_that_works_once(
    house: CipHouse, mail: MailServer
) -> None:
    async with locked_out(house) as client:
        await until(partial(lambda: bool(mail.taken)))
        ((to, text),) = mail.taken
        assert to == ANA
        path = path_in(text)
        browser = Browser(client)
        await browser.get(path)  # following the link does nothing yet
        assert browser.title == "Desbloquear el usuario"
        assert (await Browser(client).log_in_full()).status_code == 401
        await browser.get(path)
        form = browser.hidden("/cip/unlock")
        stolen = {"csrf": "0" * 64, "link": form["link"]}
        assert (await client.post("/cip/unlock", data=stolen)).status_code == 403
        await browser.send("/cip/unlock")
        assert "ya puede intentar otra vez" in browser.page.text
        assert (await Browser(client).log_in_full()).status_code == 200
        assert (await client.get(path)).status_code == 404
        assert (await client.post("/cip/unlock", data=form)).status_code in (403, 404)
        assert len(mail.taken) == 1


async def test_a_link_that_is_old_or_made_up_opens_nothing(
    house: CipHouse, mail: MailServer
) -> None:
    async with locked_out(house) as client:
        await until(partial(lambda: bool(mail.taken)))
        path = path_in(mail.taken[0][1])
        for other in ("/cip/unlock/" + "0" * 32, "/cip/unlock/x", "/cip/unlock/%ED%A0%80"):
            assert (await client.get(other)).status_code == 404
        house.clock.advance(1799)
        assert (await client.get(path)).status_code == 200
        house.clock.advance(2)
        assert (await client.get(path)).status_code == 404


async def test_who_has_no_address_gets_no_mail(house: CipHouse, mail: MailServer) -> None:
    async with locked_out(house, "ana"), house.client() as client:
        house.command("cip_user_state", application=APP, user="ana", what="unlock")
        house.command("cip_user_email", application=APP, user="ana", email="")
        await until(partial(lambda: bool(mail.taken)))
        for _ in range(10):
            await Browser(client).log_in_full(password="not the right one")
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert len(mail.taken) == 1


async def test_mail_that_is_not_taken_is_an_alarm(house: CipHouse, mail: MailServer) -> None:
    mail.refuses = True
    async with locked_out(house):
        await until(partial(lambda: house.node.alarms.get("cip_mail_failed", 0) == 1))
        assert mail.taken == []


@pytest.mark.parametrize(
    "text",
    ["", "ana", "@sof.example", "ana@", "ana@host", "a@b.c,d@e.f", "a@b.c\nBcc: d@e.f", "a b@c.d",
     "<a@b.c>", "a@b@c.d", "ñ@b.c", "a" * 251 + "@b.c"],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    assert not is_address(text)
    assert is_address("ana.nunez+pagos@sof.example")
