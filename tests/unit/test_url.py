"""URLs: one canonical form per host, and nothing that two programs read differently."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from gateway.config.url import canonical_host, parse_url, resolve_reference


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("Models.EXAMPLE", "models.example"),
        ("models.example.", "models.example"),
        ("a_b.example", "a_b.example"),
        ("xn--mnchen-3ya.example", "xn--mnchen-3ya.example"),
        ("xn--strae-oqa.example", "xn--strae-oqa.example"),
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1.", "127.0.0.1"),
        ("127.1", "127.0.0.1"),
        ("127.0.1", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("0x7f000001", "127.0.0.1"),
        ("0x7F.1", "127.0.0.1"),
        ("0177.0.0.01", "127.0.0.1"),
        ("0", "0.0.0.0"),
        ("0x", "0.0.0.0"),
        ("127%2e0%2E0.%31", "127.0.0.1"),
        ("\uff11\uff12\uff17.0.0.1", "127.0.0.1"),
        ("%EF%BC%91%EF%BC%92%EF%BC%97.0.0.1", "127.0.0.1"),
        ("127\u30020\uff0e0\uff611", "127.0.0.1"),
        ("\u2460\u2461\u2466.0.0.1", "127.0.0.1"),
        ("[::1]", "::1"),
        ("[0:0::0001]", "::1"),
        ("[::ffff:127.0.0.1]", "::ffff:7f00:1"),
        ("[fe80::1%25eth0]", "fe80::1"),
        ("[fe80::1%eth0]", "fe80::1"),
    ],
)
def test_host_has_one_form(text: str, host: str) -> None:
    assert canonical_host(text) == host
    assert parse_url(f"http://{text}/a").endpoint.host == host


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "a..b",
        ".a",
        "a%00b",
        "a%20b",
        "a%2fb",
        "a%40b",
        "a%ff",
        "a b",
        "[::1",
        "[::x]",
        "[]",
        "1.2.3.4.5",
        "256.0.0.1",
        "1.2.3.256",
        "4294967296",
        "08.0.0.1",
        "a.1",
        "1..1",
        "9" * 5000,
        "-a.example",
        "a-.example",
        "m\u00fcnchen.example",
        "xn--127001-",
        "xn--a-",
        "xn--99999999",
        "xn--",
        "xn--\u00e4",
        "a" * 64 + ".example",
        ".".join(["a" * 60] * 5),
        "\udcff",
    ],
)
def test_what_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (any message: it is never shown)
        canonical_host(text)


@pytest.mark.parametrize(
    "text",
    [
        "http://[/",
        "http:///a",
        "http://",
        "//h/a",
        "h/a",
        "ftp://h/a",
        "http:/h/a",
        "http://u@h/a",
        "http://u:p@h/a",
        "http://h:0/a",
        "http://h:65536/a",
        "http://h:x/a",
        "http://h:1:2/a",
        "http://h\\a",
        "http://h/a\\b",
        "http://h/a b",
        "http://h/a\tb",
        "http://h/a\nb",
        "http://h/a\x7f",
        "http://h/\u00e4",
        "http://h/a#b",
        "http://h#b",
        " http://h/a",
        "http://::1/a",
    ],
)
def test_what_is_no_url_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (any message: it is never shown)
        parse_url(text)


def test_path_and_query_stay_as_written() -> None:
    url = parse_url("HTTPS://H.example:/a/../%2f;b?c=%20/?")
    assert (str(url.endpoint), url.path, url.query) == ("https://h.example:443", "/a/../%2f;b", "?c=%20/?")
    assert parse_url("http://h?x").target == "/?x"
    assert str(parse_url("http://h")) == "http://h:80/"


def test_reference_is_resolved_as_browsers_do() -> None:
    base = parse_url("https://h.example/a/b?q")
    assert str(resolve_reference(base, "c")) == "https://h.example:443/a/c"
    assert str(resolve_reference(base, "/c#d")) == "https://h.example:443/c"
    assert str(resolve_reference(base, "//other.example/c")) == "https://other.example:443/c"
    assert str(resolve_reference(base, "../../c")) == "https://h.example:443/c"
    for reference in ("http://[", "\\\\evil.example", "/\tevil", "ht\ntp://x/", "mailto:a@b", "/\u00e4", "http://a b/"):
        with pytest.raises(ValueError):  # noqa: PT011 (any message: it is never shown)
            resolve_reference(base, reference)


@given(st.one_of(st.text(max_size=30), st.from_regex(r"[0-9a-fx.%\[\]:\uff10-\uff19-]{1,30}", fullmatch=True)))
def test_canonical_host_is_what_the_client_library_sees(text: str) -> None:
    """Whatever passes: it stays the same, it is ASCII, and yarl and ipaddress agree with it."""
    try:
        host = canonical_host(text)
    except ValueError:
        return
    assert host.isascii()
    bracketed = f"[{host}]" if ":" in host else host
    assert canonical_host(bracketed) == host
    assert URL.build(scheme="http", host=host, port=80, path="/").raw_host == host
    if host.replace(".", "").isdigit():
        assert str(ipaddress.ip_address(host)) == host
