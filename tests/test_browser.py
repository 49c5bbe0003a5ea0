"""The eyes the reports are looked at with see what is wrong on a page."""

import pytest

from tests.browser import CHROMIUM, look_at

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: chromium)")


def test_a_page_that_calls_out_complains_and_hides_a_figure(tmp_path):
    (tmp_path / "page.html").write_text(
        "<title>t</title><h1>h</h1><a href='#nowhere'>x</a><img src='http://127.0.0.1:9/a.png'>"
        "<svg style='display:none'><path d='M0 0'/></svg><div style='width:3000px'>.</div>"
        "<script>console.error('woe'); undefined_thing()</script>"
    )
    seen = look_at(tmp_path / "page.html", tmp_path / "profile", width=400)
    assert seen.requests == ("http://127.0.0.1:9/a.png",)
    assert any("woe" in text for text in seen.complaints)
    assert any("undefined_thing" in text for text in seen.complaints)
    image, drawing = seen.page["drawings"]
    assert not image["loaded"]
    assert not drawing["visible"]
    assert seen.page["needed"] > 400
    assert len(seen.page["broken"]) == 1
