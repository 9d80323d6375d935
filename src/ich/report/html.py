"""Pages from the templates of `templates/`."""

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from ich.files import replacing

_TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, context: Mapping[str, Any]) -> str:
    """Fill in a template of `templates/`; values are escaped, and a missing name is an error."""
    return _environment().get_template(template).render(context)


def write(path: Path, template: str, context: Mapping[str, Any], script: str) -> None:
    """Write a page that has a script of its own and can send no request, piece by piece as its context is drawn.

    Args:
        template: of `templates/`; it gets `code`, the script, and `policy`, for a meta element of the kind
            Content-Security-Policy: of scripts, it lets run this one alone.
        context: as for `render`; may hold generators.
        script: a file of `templates/`.

    Raises:
        IchError: the system refuses to write.
    """
    environment = _environment()
    code = (_TEMPLATES / script).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none';"
        " form-action 'none'"
    )
    page = environment.get_template(template).stream({**context, "code": markupsafe.Markup(code), "policy": policy})
    with replacing(path) as temporary, temporary.open("wb") as file:
        page.dump(file, encoding="utf-8")


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
