"""The site: built without a warning, every link inside it leads somewhere, nothing is fetched from elsewhere."""

import functools
import html
import html.parser
import http.server
import json
import re
import runpy
import shutil
import subprocess
import sys
import threading
import urllib.parse
from pathlib import Path

import pytest
from conftest import ORACLES_REQUIRED

ROOT = Path(__file__).parent.parent
MAKE = runpy.run_path(str(ROOT / "docs" / "website.py"))


class Page(html.parser.HTMLParser):
    """What a page links to, what it loads, and what in it can be linked to."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loaded, self.anchors = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.anchors |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if tag in ("script", "img", "source", "iframe") and given.get("src"):
            self.loaded.append(given["src"])
        if tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload"):
            self.loaded.append(given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, by its one command."""
    folder = tmp_path_factory.mktemp("site") / "site"
    ended = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "website.py"), str(folder)], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path.read_text()) for path in site.glob("**/*.html")}


@pytest.mark.slow
def test_every_link_leads_to_a_page_and_a_place_in_it(site, pages):
    wrong, seen = [], 0
    for path, page in pages.items():
        for link in [*page.links, *page.loaded]:
            parts = urllib.parse.urlsplit(link)
            if parts.scheme:
                continue
            target = (path.parent / urllib.parse.unquote(parts.path)).resolve() if parts.path else path
            seen += 1
            if not target.is_file():
                wrong.append((path.relative_to(site), link))
            elif target.suffix == ".html" and parts.fragment:
                known = pages[target].anchors
                if urllib.parse.unquote(parts.fragment) not in known:
                    wrong.append((path.relative_to(site), link))
    assert wrong == []
    assert seen > 10_000


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(site, pages):
    loaded = [link for page in pages.values() for link in page.loaded]
    assert loaded
    assert [link for link in loaded if urllib.parse.urlsplit(link).netloc] == []
    styles = "".join(path.read_text() for path in site.glob("_static/**/*.css"))
    assert re.findall(r"url\(\s*['\"]?(?:https?:)?//", styles) == []


@pytest.mark.slow
def test_every_page_of_the_project_and_every_public_name_is_there(site, pages):
    for path in (ROOT / "docs").glob("**/*.md"):
        assert (site / path.relative_to(ROOT / "docs")).with_suffix(".html") in pages
    for path in (ROOT / "examples").glob("*.py"):
        assert site / "source" / "examples" / f"{path.name}.html" in pages
    names = re.findall(r"^- `(\w+)\.(\w+)", (ROOT / "docs" / "reference.md").read_text(), re.MULTILINE)
    assert len(names) > 250
    anchors = {home: pages[site / "api" / f"{home}.html"].anchors for home, _ in names}
    assert [(home, name) for home, name in names if f"funcnn.{home}.{name}" not in anchors[home]] == []


@pytest.mark.slow
def test_what_is_searched_for_is_in_the_index(site):
    index = json.loads((site / "searchindex.js").read_text().removeprefix("Search.setIndex(").removesuffix(")"))
    assert {"dropout", "softmax_cross_entropi"} <= set(index["terms"]) | set(index["titleterms"])
    assert {"index", "readme", "api/layers", "course/01_networks", "gallery"} <= set(index["docnames"])


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.mark.long
def test_it_works_in_a_browser(site, pages, tmp_path):
    """No page is wider than a telephone; search, copying without prompts, dark and light, answers that unfold."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        assert not ORACLES_REQUIRED, "FUNCNN_REQUIRE_ORACLES is set, and there is no browser"
        pytest.skip("neither chromium nor google-chrome is installed")
    shutil.copytree(site, tmp_path / "site")
    shutil.copy(ROOT / "tests" / "browser.html", tmp_path / "site")
    asked = {"pages": sorted(path.relative_to(site).as_posix() for path in pages), "widths": [320, 1400]}
    (tmp_path / "site" / "asked.json").write_text(json.dumps(asked))
    handler = functools.partial(Quiet, directory=str(tmp_path / "site"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/browser.html"
        flags = ("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=600000", "--dump-dom")
        command = [chromium, *flags, f"--user-data-dir={tmp_path / 'profile'}", address]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=600)
        server.shutdown()
    text = html.unescape(re.findall(r"<body>(.*)</body>", ended.stdout, re.DOTALL)[0])
    assert text.startswith("{"), text  # what the page could not do
    found = json.loads(text)
    assert len(found["wide"]) == 2 * len(pages)
    assert [place for place, pixels in found["wide"].items() if pixels > 0] == []
    assert found["searched"][0] == "api/layers.html#funcnn.layers.dropout"
    assert any(link.startswith("course/15_dropout.html") for link in found["searched"])
    command, text = found["copied"]
    assert command == "copy"
    assert text.startswith("import jax, jax.numpy as jnp\nfrom funcnn import layers\n")
    assert ">>>" not in text
    light, dark = ([int(n) for n in re.findall(r"\d+", found["themes"][name])] for name in ("light", "dark"))
    assert min(light) > 200
    assert max(dark) < 60
    assert found["unfolded"][1] > found["unfolded"][0] + 100


@pytest.mark.slow
def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("not to be lost")
    ended = subprocess.run([sys.executable, MAKE["__file__"], str(tmp_path)], capture_output=True, text=True)
    assert ended.returncode == 1
    assert "expected a folder that is empty or holds the site" in ended.stderr
    assert (tmp_path / "thesis.txt").read_text() == "not to be lost"
    file = [sys.executable, MAKE["__file__"], str(tmp_path / "thesis.txt")]
    assert "expected a folder" in subprocess.run(file, capture_output=True, text=True).stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a](graphs.md#a-network)", "[a](graphs.md#a-network)"),
        ("[a](../README.md)", "[a](readme.md)"),
        ("[a](../examples/xor.py) [b](../examples)", "[a](source/examples/xor.py.md) [b](examples.md)"),
        ("[a](https://x.org/../README.md) `f[0](../x.py)`", "[a](https://x.org/../README.md) `f[0](../x.py)`"),
        ("```python\nf[0](../x.py)\n```", "```python\nf[0](../x.py)\n```"),
    ],
)
def test_links_are_turned_to_pages_and_code_is_not(text, expected, tmp_path, monkeypatch):
    page = ROOT / "docs" / "made_for_a_test.md"
    monkeypatch.setattr(Path, "read_text", lambda self, **_: text)
    assert MAKE["relinked"](page, tmp_path / page.name, tmp_path, set()) == expected


def test_a_link_to_what_is_not_there_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda self, **_: "[a](../examples/xyz.py)")
    with pytest.raises(FileNotFoundError, match=r"xyz\.py is no file"):
        MAKE["relinked"](ROOT / "docs" / "made_for_a_test.md", tmp_path / "x.md", tmp_path, set())
