"""PTX names as C++ identifiers."""

import re


def mangle(name: str) -> str:
    """`%` and `$` cannot occur in a C++ identifier."""
    return re.sub(
        r"[^A-Za-z0-9_]", lambda match: {"%": "R_", "$": "S"}.get(match.group(), "_"), name
    )


def function_name(name: str) -> str:
    return f"function_{mangle(name)}"


def variable_name(name: str) -> str:
    return f"variable_{mangle(name)}"
