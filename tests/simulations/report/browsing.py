"""What tests of the page in a browser share."""

from __future__ import annotations

from typing import Any

__all__ = ["texts", "wait_for", "widen"]


def wait_for(browser: Any, selector: str) -> None:
    """Wait until the page has drawn something."""
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 60).until(lambda _: browser.find_elements("css selector", selector))


def widen(browser: Any, width: int, drawn: str) -> None:
    """Load the page again in a window of this width, and wait for what it draws."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.refresh()
    wait_for(browser, drawn)


def texts(browser: Any, selector: str) -> list[str]:
    """What the elements say, in the page's order."""
    return [one.text.strip() for one in browser.find_elements("css selector", selector)]
