"""Reading the pages in tests, and browsing them."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

from ssl_jax import report

# What a file name, a class or a config could hold, in each way that HTML could take it for its own.
ATTACK = "</script></style><script>alert(1)</script><img src=x onerror=alert(1)>\"'><b>&amp;$x_"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDTHS = (400, 1400)


class Page(HTMLParser):
    """A parsed page: its elements with their attributes, its text, and what it calls missing, by section."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, runs, write=report.write):
        super().__init__()
        self.elements, self.text, self.missing, self.section, self.open = [], "", {}, "header", []
        self.source = write(runs).read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.elements.append((tag, attrs))
        if tag == "section":
            self.section = attrs["id"]
        if attrs.get("class") == "missing":
            self.missing.setdefault(self.section, "")
        if tag not in self.VOID:
            self.open.append((tag, attrs))

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if self.open and self.open[-1][0] != "style":
            self.text += data
        if any(attrs.get("class") == "missing" for _, attrs in self.open):
            self.missing[self.section] += data


def edit(workdir, name, change):
    value = json.loads((workdir / name).read_text())
    change(value)
    (workdir / name).write_text(json.dumps(value))


# Of each frame: its width with all that sticks out, texts on other texts or beyond their panel, and what it fetched.
LOOK = """
function visible(rect, element) {
  let {left, right, top, bottom} = rect;
  for (; element; element = element.parentElement) {
    const style = getComputedStyle(element), box = element.getBoundingClientRect();
    if (style.visibility == "hidden" || style.display == "none") return null;
    if (element.localName != "svg" && style.overflowX != "visible") {
      [left, right] = [Math.max(left, box.left), Math.min(right, box.right)];
      [top, bottom] = [Math.max(top, box.top), Math.min(bottom, box.bottom)];
    }
  }
  return right - left > 1 && bottom - top > 1 ? {left, right, top, bottom} : null;
}
function look(frame) {
  const page = frame.contentDocument, texts = [];
  const walker = page.createTreeWalker(page.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, element = node.parentElement;
    if (!node.data.trim() || element.closest("style, details:not([open]) > :not(summary)")) continue;
    const range = page.createRange();
    range.selectNodeContents(node);
    for (const rect of range.getClientRects()) {
      const seen = visible(rect, element);
      if (seen) texts.push({...seen, element, text: node.data.trim()});
    }
  }
  const overlaps = [];
  texts.forEach((a, i) => texts.slice(i + 1).forEach(b => {
    const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (a.text != b.text && across > 1 && down > 4) overlaps.push([a.text, b.text]);
  }));
  const outside = texts.filter(({element, left, right}) => {
    const panel = element.closest(".panel")?.getBoundingClientRect();
    return panel && (left < panel.left - 1 || right > panel.right + 1);
  });
  const fetched = frame.contentWindow.performance.getEntriesByType("resource").map(entry => entry.name);
  const width = page.documentElement.scrollWidth;
  return {width, texts: texts.length, overlaps, outside: outside.map(({text}) => text), fetched};
}
onload = () => document.title = JSON.stringify([...document.querySelectorAll("iframe")].map(look));
"""


def browse(source, tmp_path):
    """(what LOOK finds for each of WIDTHS, what the browser's console says) of a page in headless Chromium."""
    # In frames: a window of Chromium is never narrower than 500 pixels.
    content = html.escape(source)
    frames = [f'<iframe srcdoc="{content}" style="width: {width}px; border: 0"></iframe>' for width in WIDTHS]
    page = tmp_path / "frames.html"
    page.write_text(f'<!doctype html><meta charset="utf-8"><title></title>{"".join(frames)}<script>{LOOK}</script>')
    quiet = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    quiet += " --disable-component-update --disable-sync --hide-scrollbars --enable-logging=stderr"
    chromium = [CHROMIUM, "--headless", *quiet.split(), f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    run = subprocess.run([*chromium, page.as_uri()], capture_output=True, text=True, timeout=240, check=True)
    found = json.loads(html.unescape(re.search("<title>(.*?)</title>", run.stdout, re.DOTALL)[1]))
    return found, [line for line in run.stderr.splitlines() if "CONSOLE" in line]


def check(found, console):
    """Fails for what is wrong with a page that was browsed."""
    assert console == []
    assert [frame["width"] for frame in found] == list(WIDTHS)
    for frame in found:
        assert frame["texts"] > 10
        assert frame["overlaps"] == []
        assert frame["outside"] == []
        assert frame["fetched"] == []
