"""Reading the pages that commands write."""

import html.parser


class Page(html.parser.HTMLParser):
    """Tags with their attributes; every tag that is opened must be closed."""

    VOID = ("meta", "img")

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def count(self, tag, kind):
        return sum(name == tag and attrs.get("class") == kind for name, attrs in self.tags)

    def needs_nothing_else(self):
        """Whether it loads nothing: no scripts, no links, pictures inside."""
        tags = {tag for tag, _ in self.tags}
        loads = any({"href", "xlink:href", "srcset"} & attrs.keys() for _, attrs in self.tags)
        inside = all(attrs.get("src", "data:").startswith("data:") for _, attrs in self.tags)
        return inside and not loads and not tags & {"script", "link", "iframe"} and "url(" not in self.text and "@import" not in self.text
