"""Names and identities. A name becomes a Dagster key, a path and an SQL value only after :func:`check_name`."""

from __future__ import annotations

import hashlib
import hmac
import re
import unicodedata

from contracts.errors import IllegalName

NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,63}$"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
MAX_EXAMPLE_ID = 2**63 - 1


def check_name(name: object, *, kind: str = "name") -> str:
    """Return ``name`` unchanged if it is a legal name of a subject, model, method, dataset or request.

    Raises:
        IllegalName: not a string, or not matching ``^[a-z0-9][a-z0-9_-]{0,63}$``.

    >>> check_name("fashion_mnist")
    'fashion_mnist'
    """
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise IllegalName(
            f"{kind} {str(name)[:80]!r} is not allowed: use 1 to 64 of a-z, 0-9, '_' and '-', starting with a letter "
            "or digit"
        )
    return name


def owner_token(owner: str, *, salt: bytes) -> str:
    """The token stored in place of an owner's name: the first 32 hex digits of HMAC-SHA256(salt, owner).

    An empty owner (nobody's data) gives an empty token. Without the salt the token cannot be linked to the name.

    >>> owner_token("", salt=b"s")
    ''
    >>> len(owner_token("ann", salt=b"s"))
    32
    """
    if not owner:
        return ""
    return hmac.new(salt, owner.encode("utf-8"), hashlib.sha256).hexdigest()[:32]


def same_text(name: str) -> str:
    """A form that two spellings of a name share when no reader can tell them apart: canonically equal in Unicode (NFC),
    spaces around it left out. A person is found by it: on no screen or form can two people differ in that alone.

    >>> same_text("Zoe\\u0308 ") == same_text("Zo\\u00eb")
    True
    >>> same_text("Zoe") == same_text("zoe")
    False
    """
    return unicodedata.normalize("NFC", name).strip()


def spellings(name: str) -> tuple[str, ...]:
    """A name as it is given, then as :func:`same_text` gives it, composed and decomposed: for where there are tokens
    only and no names to compare with."""
    text = same_text(name)
    return tuple(dict.fromkeys((name, text, unicodedata.normalize("NFD", text))))


def nearly_same(name: str) -> str:
    """A form that names share when they differ in case, width, ligatures, spaces or invisible characters only (NFKC,
    case folded). Two people may differ in that ("aB3" and "Ab3" as user names): it finds names to be shown, never one
    to act on.

    >>> nearly_same("Ann\\u00a0 LEE") == nearly_same("ann lee")
    True
    """
    seen = "".join(c for c in unicodedata.normalize("NFKC", name) if unicodedata.category(c) != "Cf")
    return " ".join(unicodedata.normalize("NFKC", seen.casefold()).split())
