"""A matplotlib Figure -> a piece of a page that needs no other file.

in   a Figure drawn with the role colours of scfm.evaluate.figures
out  SVG markup whose colours are the page's CSS variables, or a PNG as a data URI
"""

import base64
import io
import re
import xml.etree.ElementTree as ET

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

from scfm.evaluate import figures

# --ink and the like are set in templates/report.css, once for light and once for dark pages.
CSS_VARIABLES = {
    figures.INK: "var(--ink)",
    figures.MUTED: "var(--muted)",
    figures.LINE: "var(--line)",
    figures.PAPER: "var(--card)",
    figures.ACCENT: "var(--accent)",
    figures.ON_ACCENT: "var(--on-accent)",
    figures.SECOND: "var(--second)",
}

SMALLEST_SCALE = 0.9  # CSS pixels a point; below it text is too small, and the box scrolls


def svg(figure: Figure, *, name: str) -> Markup:
    """The figure as an <svg> element that scales with its box; its text stays text.

    ``name`` keeps the ids of several figures on one page apart. Hidden from screen readers: the
    page gives the description on the element around it.
    """
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "scfm"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    # Rewritten in the tree, attribute by attribute: in the text a label could pass for markup.
    root = ET.fromstring(buffer.getvalue())
    for parent in root.iter():
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):  # style would reach the whole page
                parent.remove(child)
    for element in root.iter():
        element.tag, element.tail = _local(element.tag), None
        if element.tag != "text":
            element.text = None
        element.attrib = {
            _local(key): _page_value(_local(key), value, name)
            for key, value in element.attrib.items()
            if (element.tag, key) != ("g", "id")
        }
    width = float(root.attrib["viewBox"].split()[2])
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "style": f"min-width: {SMALLEST_SCALE * width:.0f}px",
        "aria-hidden": "true",
        "focusable": "false",
    }
    return Markup(ET.tostring(root, encoding="unicode"))


def png(figure: Figure, *, width: int) -> str:
    """The figure on transparent ground as a data URI, at twice ``width`` CSS pixels."""
    buffer = io.BytesIO()
    dots_per_inch = 2 * width / figure.get_size_inches()[0]
    figure.savefig(
        buffer, format="png", dpi=dots_per_inch, transparent=True, pil_kwargs={"optimize": True}
    )
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _local(name: str) -> str:
    """A name without its namespace, which HTML's parser supplies by itself."""
    return name.rpartition("}")[2]


def _page_value(key: str, value: str, name: str) -> str:
    """An attribute's value with the page's colours, typeface and ids."""
    if key == "id":
        return f"{name}-{value}"
    if key == "href":
        return value.replace("#", f"#{name}-")
    for colour, variable in CSS_VARIABLES.items():
        value = value.replace(colour, variable)
    value = re.sub(r"font-family: [^;]*", "font-family: inherit", value)
    return value.replace("url(#", f"url(#{name}-")
