"""The pages' templates, in the folder of this module."""

from typing import Any

import jinja2

from ssl_jax.report import palette


def render(template: str, **values: Any) -> str:
    """Fills in a template. Strings in `values` stay text, whatever HTML they hold. A missing value is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ssl_jax.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(light=palette.LIGHT, dark=palette.DARK, **values)
