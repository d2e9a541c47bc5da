"""Classes by the names that Keras has for them, and what to say of the other names."""

from __future__ import annotations

import difflib
import dis
import sys
from collections.abc import Iterable, Mapping
from typing import Any


class Names:
    """The classes of one kind, by name.

    Args:
        kind: what they are, e.g. "loss".
        base: the class that they derive from.
        classes: the classes by their lower-case names.
        aliases: for shorter names, the longer ones. All in capitals they stand for the same.
        left_out: classes of Keras's that there are no counterparts of.
    """

    def __init__(
        self,
        kind: str,
        base: type,
        classes: Mapping[str, type],
        aliases: Mapping[str, str],
        left_out: Iterable[str],
    ) -> None:
        self._kind, self._base = kind, base
        self._classes = {cls.__name__: cls for cls in classes.values()}
        self._known = {**classes, **{alias: classes[name] for alias, name in aliases.items()}}
        capitals = {alias.upper(): classes[name] for alias, name in aliases.items()}
        self._all = {**self._classes, **self._known, **capitals}
        self._left_out = {_plain(name) for name in left_out}

    def find(self, identifier: Any) -> tuple[type, dict[str, Any]]:
        """Returns the class, and the arguments for its constructor.

        Args:
            identifier: a name, a class, or ``{"class_name": ..., "config": ...}``.

        Raises:
            ValueError: if it is unknown, or not supported.
        """
        if isinstance(identifier, type) and issubclass(identifier, self._base):
            return identifier, {}
        name, config = identifier, {}
        if isinstance(identifier, dict) and set(identifier) >= {"class_name", "config"}:
            name, config = identifier["class_name"], identifier["config"]
        if not isinstance(name, str):
            hint = ""
            if callable(name):
                hint = f". Functions are not supported: derive a class from {self._base.__name__}"
            raise ValueError(
                f"Unknown {self._kind}. Expected {self._expected()}. Received: {identifier!r}{hint}"
            )
        if name in self._all:
            return self._all[name], config
        if self.leaves_out(name):
            raise ValueError(
                f"The {self._kind} {name!r} of Keras is not supported. Use {self._expected()}. "
                f"Received: {identifier!r}"
            )
        raise ValueError(
            f"Unknown {self._kind}. Expected {self._expected()}. Received: {identifier!r}"
        )

    def leaves_out(self, name: str) -> bool:
        """Whether Keras has this name, and there is no counterpart here."""
        return _plain(name) in self._left_out

    def missing(self, module: str, name: str) -> AttributeError | ImportError:
        """What to raise where the module is asked for a name that it does not have."""
        found = self._known.get(name)
        if found is not None:
            return _not_there(
                f"{module}.{name}, a function of Keras's, is not supported. Use the class "
                f"{module}.{found.__name__}"
            )
        return missing(
            module,
            name,
            self._classes,
            is_keras=self.leaves_out(name),
            more=f"; others can be derived from {self._base.__name__}",
        )

    def _expected(self) -> str:
        return (
            f"one of {', '.join(sorted(self._known))}, or an object of a class derived from "
            f"{self._base.__name__}"
        )


def missing(
    module: str, name: str, there: Iterable[str], *, is_keras: bool = False, more: str = ""
) -> AttributeError | ImportError:
    """What a module's `__getattr__` raises for a name that the module does not have.

    Args:
        module: the module's name.
        name: what was asked for.
        there: names that the module has; those of functions and private ones are not told.
        is_keras: whether it is known that Keras has the name.
        more: what else to say of the names that there are.
    """
    classes = sorted(known for known in there if known[:1].isupper())
    text = f"module {module!r} has no attribute {name!r}"
    if name.startswith("_"):
        return AttributeError(text)
    if is_keras:
        text = f"{module}.{name} of Keras is not supported"
    elif similar := difflib.get_close_matches(name, classes, 1):
        text += f", perhaps {similar[0]!r} is meant"
    return _not_there(
        f"{text}. There are {', '.join(classes)}{more}. What else Keras has is left out; "
        "docs/from_keras.md says what there is instead"
    )


def _not_there(text: str) -> AttributeError | ImportError:
    """The exception with this text that the user of a module sees.

    Of an AttributeError, `from module import name` makes an ImportError with a text of its own; an
    ImportError in place of an AttributeError, on the other hand, would break `hasattr`. So it
    matters what the code that asks is doing: whoever called the module's `__getattr__`.
    """
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_code.co_name != "__getattr__":
        frame = frame.f_back
    asking = frame.f_back
    imports = dis.opmap.get("IMPORT_FROM")
    if asking is not None and asking.f_code.co_code[asking.f_lasti] == imports:
        return ImportError(text)
    return AttributeError(text)


def only_defaults(owner: object, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Refuses arguments of Keras's that are taken only where they change nothing.

    Args:
        owner: whose constructor they were given to.
        given: the arguments.
        defaults: the arguments that Keras has, with their defaults there.

    Raises:
        TypeError: if Keras does not have an argument either.
        ValueError: if one is not the default.
    """
    cls = type(owner).__name__
    for argument, value in given.items():
        if argument not in defaults:
            raise TypeError(f"{cls} has no argument {argument!r}. Received: {argument}={value!r}")
        if value != defaults[argument]:
            raise ValueError(
                f"{cls} does not support {argument} other than {defaults[argument]!r}. Leave it "
                f"out. Received: {argument}={value!r}"
            )


def _plain(name: str) -> str:
    """The same for `KLDivergence` and `kl_divergence`."""
    return name.replace("_", "").lower()
