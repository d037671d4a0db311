"""The configuration of Webpay: what cannot be meant stops the start, with the name of the key."""

from pathlib import Path

import pytest

from switch.config import Config, ConfigError, load

MERCHANT = {
    "name": '"Tienda"', "key": '"shop"', "notify_url": '"http://198.51.100.7:8081/cgi"',
    "notify_ip": '"9.9.9.9"', "notify_port": "8081", "return_hosts": '["example.cl"]',
}  # fmt: skip
CODE = "597026007976"


def section(webpay: str = "", code: str = CODE, **changed: str | None) -> str:
    """A configuration with one merchant, some of its values changed, or left out."""
    values = {k: v for k, v in (MERCHANT | changed).items() if v is not None}
    lines = "\n".join(f"{name} = {value}" for name, value in values.items())
    return f'[webpay]\n{webpay}\n[webpay.merchant."{code}"]\n{lines}\n'


def read(directory: Path, text: str) -> Config:
    path = directory / "troncal.toml"
    path.write_text(text)
    return load(path, environ={})


def closing(url: str) -> str:
    return f'{{ closing_url = "{url}" }}'


DIRECT = closing("https://example.cl/xt_compra")
BANK = '{ id = "a", name = "A" }'


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (section(code="59702600797"), "merchant"),
        (section(code="59702600797x"), "merchant"),
        (section(form='"4G"'), "form"),
        (section(currency='"EUR"'), "currency"),
        (section(instalments='["VC-49"]'), "instalments"),
        (section(instalments='["VN-1"]'), "instalments"),
        (section(instalments='["NC-13"]'), "instalments"),
        (section(instalments="[]"), "instalments"),
        (section(authoriser='"banco:x"'), "authoriser"),
        (section(mcc='"59"'), "mcc"),
        (section(order_policy='"twice"'), "order_policy"),
        (section(key_ids='["102"]'), "key_ids"),
        (section(key_ids='["100"]'), "key_ids"),
        (section(notify_url=None), "notify_url"),
        (section(notify_ip=None), "notify_ip"),
        (section(notify_port=None), "notify_port"),
        (section(notify_ip='"shop.example.cl"'), "notify_ip"),
        (section(notify_ip='"10.0.0.9"'), "notify_ip"),
        (section(notify_ip='"127.0.0.1"'), "notify_ip"),
        (section(notify_url='"ftp://example.cl/"'), "notify_url"),
        (section(notify_mode='"direct"'), "closing_url"),
        (section(notify_mode='"direct"', notify_url=None, direct=DIRECT), "notify_url"),
        (section(notify_mode='"direct"', direct=closing("http://example.cl/x")), "HTTPS"),
        (section(notify_mode='"direct"', direct=closing("https://10.0.0.9/x")), "private"),
        (section(return_hosts='["example.cl/x"]'), "return_hosts"),
        (section(return_hosts='["192.168.1.5"]'), "return_hosts"),
        (section(return_hosts='["localhost:8080"]'), "return_hosts"),
        (section(api_key='"plain-secret"'), "api_key"),
        (section(target='"relative"'), "target"),
        (section(nombre='"x"'), "nombre"),
        (section('accounting_cutoff = "25:00"'), "accounting_cutoff"),
        (section('holidays = ["2026-13-01"]'), "holidays"),
        (section('holidays = ["2026-09-18", "2026-02-30"]'), "holidays"),
        (section('timezone = "America/Nowhere"'), "timezone"),
        (section('prefixes = ["cgi-bin"]'), "prefixes"),
        (section('vci_not_tried = "LARGO"'), "vci_not_tried"),
        (section("limits = { ack_timeout_ms = 30001 }"), "ack_timeout_ms"),
        (section(f"debit_banks = [{BANK}, {BANK}]"), "debit_banks"),
        (section("allow = { kcc52 = true }"), "kcc52"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_stops_the_start(tmp_path: Path, text: str, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert key in str(caught.value)


def test_what_is_meant_starts(tmp_path: Path) -> None:
    found = read(tmp_path, section(notify_mode='"direct"', direct=DIRECT)).webpay
    assert found.merchant[CODE].direct.closing_url == "https://example.cl/xt_compra"
    limits = found.limits
    assert (limits.form_ttl_s, limits.holder_auth_s, limits.auth_timeout_ms) == (600, 300, 20_000)
    assert (limits.ack_timeout_ms, limits.late_watch_s, limits.rsa_threads) == (30_000, 60, 4)
    assert (limits.seal_fail_per_min, found.prefixes) == (
        20, ("/filtroUnificado", "/cgi-bin", "/webpayserver"),
    )  # fmt: skip
    allow = found.allow
    weak = (allow.key_100, allow.short_merchant_keys, allow.kcc51, allow.private)
    assert weak == (False, False, False, False)
    assert (found.bitacora.style, found.bitacora.layout, found.vci_not_tried) == (
        "seed", "dated", "NP",
    )  # fmt: skip
    assert read(tmp_path, section("allow = { private = true }", notify_ip='"127.0.0.1"'))
    assert read(tmp_path, section("allow = { key_100 = true }", key_ids='["101", "100"]'))


def test_cards_are_typed_over_TLS_or_on_this_machine(tmp_path: Path) -> None:
    """No network is trusted so far, whatever `plaintext` says of terminals and hosts."""
    outside = '[node]\nplaintext = true\n[listen]\nhttp = "0.0.0.0:8080"\n'
    assert read(tmp_path, outside)  # nobody types a card there
    with pytest.raises(ConfigError, match="takes cards without TLS"):
        read(tmp_path, outside + section())
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).write_text("")
    tls = '[tls.http]\ncert = "cert.pem"\nkey = "key.pem"\n'
    assert read(tmp_path, outside + tls + section())
    assert read(tmp_path, '[listen]\nhttp = "127.0.0.1:8080"\n' + section())
