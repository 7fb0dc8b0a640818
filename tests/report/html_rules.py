"""Rules of accessibility that need no browser, each as a function from a page to what breaks it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise

VOID = {"meta", "link", "img", "br", "input", "hr"}
LANDMARKS = {"main": "main", "nav": "navigation", "header": "banner", "footer": "contentinfo"}
ROLES = {"note", "group", "region", "img"}


@dataclass
class Node:
    """An element with its parent; text is a node without a tag."""

    tag: str
    values: dict[str, str]
    parent: "Node | None" = None
    children: list["Node"] = field(default_factory=list)
    text: str = ""

    def walk(self) -> Iterator["Node"]:
        yield self
        for child in self.children:
            yield from child.walk()

    def all(self, *tags: str) -> list["Node"]:
        return [one for one in self.walk() if one.tag in tags]

    def above(self) -> Iterator["Node"]:
        if self.parent is not None:
            yield self.parent
            yield from self.parent.above()

    def said(self, *, hidden: bool = False) -> str:
        """What is read out."""
        if self.values.get("aria-hidden") == "true" and not hidden:
            return ""
        own = self.values.get("alt", "") if self.tag == "img" else self.text
        return " ".join([own, *(child.said(hidden=hidden) for child in self.children)]).strip()


class _Builder(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.root = self.here = Node("", {})
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, {name: value or "" for name, value in attrs}, self.here)
        self.here.children.append(node)
        if tag not in VOID:
            self.here = node

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.here.tag == tag, f"</{tag}> closes <{self.here.tag}>"
        assert self.here.parent is not None
        self.here = self.here.parent

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.here.children.append(Node("", {}, self.here, text=data.strip()))


def tree(text: str) -> Node:
    """The page as nodes; fails where tags are not balanced."""
    built = _Builder(text)
    assert built.here is built.root
    return built.root


def focusable(node: Node) -> bool:
    return (node.tag == "a" and "href" in node.values) or node.tag == "summary" or (
        "tabindex" in node.values
    )  # fmt: skip


def name_of(node: Node, root: Node) -> str:
    """The accessible name, from labels or content."""
    return label_of(node, root) or node.said()


def label_of(node: Node, root: Node) -> str:
    """The name that a landmark, region or group has: from labels alone."""
    if ids := node.values.get("aria-labelledby"):
        found = [one for one in root.walk() if one.values.get("id") in ids.split()]
        return " ".join(one.said() for one in found)
    return node.values.get("aria-label", "")


def document(root: Node, text: str) -> Iterator[str]:
    """Language, title, zoom, encoding, one main landmark and its siblings."""
    if not text.startswith("<!DOCTYPE html>"):
        yield "no doctype"
    if root.all("html")[0].values.get("lang") != "en":
        yield "no language"
    if not root.all("title")[0].said():
        yield "no title"
    viewport = next(one for one in root.all("meta") if one.values.get("name") == "viewport")
    if re.search("user-scalable=no|maximum-scale", viewport.values["content"]):
        yield "zoom is forbidden"
    for tag in ("main", "header", "footer", "h1"):
        if len(root.all(tag)) != 1:
            yield f"not one <{tag}>"
    for child in root.all("body")[0].children:
        if child.tag not in ("header", "main", "footer") and child.values.get("class") != "skip":
            yield f"<{child.tag}> is in no landmark"


def controls(root: Node) -> Iterator[str]:
    """Whatever takes the focus has a name, an order of its own accord, and is not hidden."""
    for node in filter(focusable, root.walk()):
        if not name_of(node, root):
            yield f"<{node.tag}> {node.values} has no name"
        if node.values.get("tabindex", "0") != "0":
            yield f"<{node.tag}> has tabindex {node.values['tabindex']}"
        if any(one.values.get("aria-hidden") == "true" for one in [node, *node.above()]):
            yield f"<{node.tag}> is hidden but takes the focus"
        if any(one.values.get("role") == "img" for one in node.above()):
            yield f"<{node.tag}> lies inside an image"
        if "tabindex" in node.values and node.values.get("role") != "region":
            yield f"<{node.tag}> takes the focus but has no role"
    for node in root.walk():
        scrolls = "scroll" in node.values.get("class", "").split() or node.tag == "pre"
        if scrolls and "tabindex" not in node.values:
            yield f"<{node.tag}> scrolls and cannot be reached by keyboard"


def regions(root: Node) -> Iterator[str]:
    """Landmarks and regions have names, each one its own; roles are ones that exist."""
    named: list[tuple[str, str]] = []
    for node in root.walk():
        role = node.values.get("role") or ("region" if node.tag == "section" else "")
        if role and role not in ROLES:
            yield f"role {role} is unknown"
        if role in ("region", "group", "img") or node.tag == "nav":
            name = label_of(node, root)
            if not name:
                yield f"<{node.tag}> has no name"
            if role == "region" or node.tag == "nav":
                named.append((role or node.tag, name))
    twice = {one for one in named if named.count(one) > 1}
    yield from (f"{role} {name!r} occurs twice" for role, name in sorted(twice))


INSIDE = {"ul": {"li"}, "ol": {"li"}, "dl": {"dt", "dd"}, "tr": {"th", "td"},
          "tbody": {"tr"}, "thead": {"tr"}, "tfoot": {"tr"}}  # fmt: skip
FIRST = {"table": "caption", "details": "summary", "svg": "title"}


def structure(root: Node) -> Iterator[str]:
    """Lists hold items, tables have headings with a scope, pictures have texts."""
    for node in root.walk():
        tags = [child.tag for child in node.children]
        if node.tag in INSIDE and set(tags) - INSIDE[node.tag]:
            yield f"<{node.tag}> holds {tags}"
        if node.tag in FIRST and tags[:1] != [FIRST[node.tag]]:
            yield f"<{node.tag}> does not start with <{FIRST[node.tag]}>"
        if node.tag == "img" and not node.values.get("alt"):
            yield "a picture has no text"
        if node.tag == "th" and not (node.said() and node.values.get("scope")):
            yield f"a heading of a table has no text or scope: {node.values}"
        if node.tag == "svg" and not any(one.tag == "desc" and one.said() for one in node.children):
            yield "a plot has no description"


def headings(root: Node) -> Iterator[str]:
    """Headings say something, and go down one level at a time."""
    found = root.all("h1", "h2", "h3", "h4", "h5", "h6")
    for before, after in pairwise(int(one.tag[1]) for one in found):
        if after > before + 1:
            yield f"<h{after}> follows <h{before}>"
    yield from (f"<{one.tag}> is empty" for one in found if not one.said())


def references(root: Node) -> Iterator[str]:
    """Ids occur once, and what is referred to is there."""
    ids = [one.values["id"] for one in root.walk() if "id" in one.values]
    yield from (f"id {one} occurs twice" for one in {one for one in ids if ids.count(one) > 1})
    for node in root.walk():
        wanted = node.values.get("aria-labelledby", "").split()
        wanted += [node.values["href"][1:]] if node.values.get("href", "").startswith("#") else []
        yield from (f"#{one} is nowhere" for one in wanted if one not in ids)


def colour_only(root: Node) -> Iterator[str]:
    """A coloured mark says its meaning in words as well."""
    for node in root.walk():
        if "chip" in node.values.get("class", "").split() and not node.said():
            yield "a chip has a colour but no word"


def luminance(colour: str) -> float:
    """Relative luminance of `#rgb` or `#rrggbb`, by WCAG 2."""
    digits = colour.lstrip("#")
    digits = "".join(2 * one for one in digits) if len(digits) == 3 else digits
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
    return sum(weight * one for weight, one in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours, by WCAG 2: 1..21."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)
