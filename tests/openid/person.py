"""A person at a browser: follows links, fills in forms, presses a button; keeps cookies from one visit to the next."""

from __future__ import annotations

from html.parser import HTMLParser
from urllib.parse import urljoin

import httpx2

from tests.openid.provider import Provider

PAGES_MAX = 10


class Astray(AssertionError):
    """A page that nobody expected; the text says which, and what it shows."""


class Form(HTMLParser):
    """The one form of a page; `action` stays None on a page without."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.action: str | None = None
        self.fields: dict[str, str] = {}
        self.refusal: dict[str, str] = {}
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "form":
            self.action = given.get("action", "")
        elif tag == "input" and "name" in given:
            self.fields[given["name"]] = given.get("value", "")
        elif tag == "button" and given.get("name") == "abort":
            self.refusal = {"abort": given["value"]}


class Person:
    """One account's owner at one browser."""

    def __init__(self, provider: Provider, name: str) -> None:
        self.provider = provider
        self.name = name
        self.http = httpx2.Client(verify=provider.trust(), trust_env=False, follow_redirects=True, timeout=60)

    def visit(self, url: str) -> str:
        """Log in and agree; return the address on loopback that the browser was sent to, and has fetched."""
        return self._sent_back(self._browse(url, refuse=False))

    def deny(self, url: str) -> str:
        """Refuse at the first page that lets one; return where the browser was sent to."""
        return self._sent_back(self._browse(url, refuse=True))

    def approve(self, verification_uri_complete: str) -> None:
        """Confirm a device's code, log in and agree."""
        end = self._browse(verification_uri_complete, refuse=False)
        if "successful" not in end.text:
            raise _astray(end)

    def refuse(self, verification_uri_complete: str) -> None:
        """Refuse a device, whose code is right."""
        end = self._browse(verification_uri_complete, refuse=True)
        if "interrupted" not in end.text:
            raise _astray(end)

    def _browse(self, url: str, *, refuse: bool) -> httpx2.Response:
        """Return the last page: on loopback, or one on which there is nothing left to do."""
        page = self.http.get(url)
        for _ in range(PAGES_MAX):
            if _loopback(page):
                return page
            form = Form(page.text)
            if not page.is_success:
                raise _astray(page)
            if form.action is None or form.fields.get("user_code") == "":
                return page
            filled = form.fields | ({"login": self.name} if "login" in form.fields else {}) | (form.refusal if refuse else {})
            page = self.http.post(urljoin(str(page.url), form.action or str(page.url)), data=filled)
        raise _astray(page)

    def _sent_back(self, page: httpx2.Response) -> str:
        if found := _loopback(page):
            return found
        raise _astray(page)


def _loopback(page: httpx2.Response) -> str:
    """Return the first address without TLS on the way to a page: a command's own listener."""
    return next((str(each.url) for each in [*page.history, page] if each.url.scheme == "http"), "")


def _astray(page: httpx2.Response) -> Astray:
    return Astray(f"{page.request.method} {page.url}: {page.status_code}: {page.text[:2000]}")
