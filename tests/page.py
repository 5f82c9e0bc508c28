"""Reading the pages that commands write."""

import html.parser


class Page(html.parser.HTMLParser):
    """Tags with their attributes; every tag that is opened must be closed.

    Attributes:
        tags: pairs of a name and attributes.
        text: all of it, that of tooltips included.
        titles: the texts of `title` elements: that of the page, then the tooltips of its charts.
    """

    VOID = ("meta", "img")

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text, self.titles = [], [], "", []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "title":
            self.titles.append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] == "title":
            self.titles[-1] += data

    def count(self, tag, kind):
        return sum(name == tag and attrs.get("class") == kind for name, attrs in self.tags)

    def check_loads_and_runs_nothing(self):
        """No scripts, no links, pictures inside, and a policy that forbids the rest; identifiers are unique and are all there."""
        allowed = {"html", "head", "meta", "title", "style", "body", "main", "header", "section", "div", "p", "h1", "h2", "h3", "span", "b"}
        allowed |= {"code", "dl", "dt", "dd", "figure", "figcaption", "img", "table", "thead", "tbody", "tr", "th", "td"}
        allowed |= {"svg", "g", "defs", "clippath", "path", "rect", "use", "text"}
        assert {tag for tag, _ in self.tags} <= allowed
        identifiers = [attrs["id"] for _, attrs in self.tags if "id" in attrs]
        assert len(set(identifiers)) == len(identifiers)
        for _, attrs in self.tags:
            for name, value in attrs.items():
                assert not name.startswith("on")
                assert name not in {"srcset", "xlink:href", "srcdoc", "action"}
                if name == "src":
                    assert value.startswith("data:image/")
                if name == "href":
                    assert value.removeprefix("#") in identifiers
                if "url(" in value:
                    assert value.removeprefix("url(#").removesuffix(")") in identifiers
        assert "url(" not in self.text
        assert "@import" not in self.text
        (policy,) = (attrs["content"] for _, attrs in self.tags if attrs.get("http-equiv") == "Content-Security-Policy")
        rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
        assert rules["default-src"] == "'none'"
        assert rules["img-src"] == "data:"
        assert not {"script-src", "connect-src"} & rules.keys()
