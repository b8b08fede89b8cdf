"""A network's name and options as one string."""

import ast
from typing import Any


def described(text: str) -> dict[str, Any]:
    """ "NAME" or "NAME(option=value, ...)" -> {"name": NAME, option: value, ...}, as `models.create` takes them.

    Values are written as in Python: "resnet8(width=2.0, stages=(1, 1))".

    Raises: ValueError for any other text.
    """
    if text.isidentifier():
        return {"name": text}
    try:
        call = ast.parse(text, mode="eval").body
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args:
            options = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg}
            if len(options) == len(call.keywords):
                return {"name": call.func.id, **options}
    except (SyntaxError, ValueError):
        pass
    raise ValueError(f'{text!r} is no network; write "NAME", or "NAME(option=value, ...)" with values as in Python')
