"""The parts of a report's page as HTML: its frame and look, tables, figures, and numbers as a reader wants them.

A page carries its images inside (base64), loads nothing and runs nothing, so it can be mailed and kept as one file.
"""

import base64
import html
import time
from collections.abc import Iterable, Sequence

from hpfwi.figures.style import Picture

Row = tuple[str, ...]

_STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 66rem; padding: 1.5rem; color: #222; background: #fff;
       font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.8rem; margin: 0 0 .3rem; line-height: 1.2; }
h2 { font-size: 1.3rem; margin: 2.4rem 0 .6rem; padding-bottom: .2rem; border-bottom: 1px solid #ccc; }
h3 { font-size: 1.05rem; margin: 1.8rem 0 .4rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; list-style: none; padding: 0; margin: .8rem 0; }
a { color: #00527f; }
.state { padding: .6rem .9rem; border-left: .35rem solid #009e73; background: #eef7f4; margin: 1rem 0; }
.state.unfinished { border-color: #b85000; background: #fdf3ea; }
.summary { font-size: 1.08rem; max-width: 46rem; }
figure { margin: 0 0 1.8rem; }
figure img { max-width: 100%; height: auto; }
figcaption { max-width: 46rem; color: #333; margin-top: .4rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; margin: .8rem 0; font-size: .95rem; }
caption { text-align: left; color: #444; padding-bottom: .3rem; }
th, td { text-align: left; vertical-align: top; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid #e2e2e2; }
thead th { border-bottom: 1px solid #777; }
tbody th { font-weight: normal; }
td { overflow-wrap: anywhere; }
code, pre { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .92em; }
pre { background: #f4f4f4; padding: .7rem .9rem; overflow-x: auto; }
footer { margin-top: 3rem; color: #555; font-size: .9rem; }
@media print { body { max-width: none; padding: 0; } figure, tr { break-inside: avoid; } nav { display: none; } }
"""


def html_page(title: str, state: str, sections: Sequence[tuple[str, str, str]], *, ending: str) -> str:
    """A page with a list of its contents.

    state       HTML under the title
    sections    anchor, heading and HTML of each; those without HTML are left out
    ending      the words in the foot
    """
    shown = [section for section in sections if section[2]]
    links = "".join(f'<li><a href="#{anchor}">{heading}</a></li>' for anchor, heading, _ in shown)
    body = "".join(
        f'<section aria-labelledby="{anchor}"><h2 id="{anchor}">{heading}</h2>{content}</section>\n'
        for anchor, heading, content in shown
    )
    name = escape(title)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name} · hpfwi report</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>{name}</h1>{state}</header>\n"
        f'<nav aria-label="Contents"><ul>{links}</ul></nav>\n<main>\n{body}</main>\n'
        f"<footer>{escape(ending)}</footer>\n"
        "</body>\n</html>\n"
    )


def escape(value: object) -> str:
    return html.escape(str(value), quote=True)


def clock(unix_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(unix_s))


def number(value: float) -> str:
    """A number as a reader wants it.

    >>> number(0.15171), number(1834000.0), number(12.0)
    ('0.1517', '1.834e+06', '12')
    """
    return f"{value:.4g}"


def duration(seconds: float) -> str:
    """A duration in the unit that reads best.

    >>> duration(42.3), duration(1320), duration(9000)
    ('42.3 s', '22 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def table(caption: str, header: Row, rows: Iterable[Row], *, code: bool = False) -> str:
    """A table whose first column names its rows; `code` sets the other cells in the code font. Cells are escaped."""
    opened, closed = ("<code>", "</code>") if code else ("", "")
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{opened}{escape(cell)}{closed}</td>" for cell in cells)
        + "</tr>\n"
        for first, *cells in rows
    )
    return (
        f'<div class="table"><table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}</tbody></table></div>\n"
    )


def figure(picture: Picture, png: bytes) -> str:
    anchor = escape(picture.file.removesuffix(".png"))
    data = base64.b64encode(png).decode("ascii")
    words = f"{escape(picture.caption)} <small>(figures/{escape(picture.file)})</small>"
    return (
        f'<figure id="figure-{anchor}"><h3>{escape(picture.title)}</h3>'
        f'<img src="data:image/png;base64,{data}" alt="{escape(picture.alt)}">'
        f"<figcaption>{words}</figcaption></figure>\n"
    )


def fall(first: float, last: float) -> str:
    """How much a positive number changed, in words.

    >>> fall(200.0, 5.0), fall(1.0, 1.2), fall(1.0, 1.0)
    ('97.5\\xa0% less', '20\\xa0% more', 'unchanged')
    """
    if first <= 0 or first == last:
        return "unchanged"
    share = 100 * (last - first) / first
    return f"{abs(share):.3g}\u00a0% {'less' if share < 0 else 'more'}"
