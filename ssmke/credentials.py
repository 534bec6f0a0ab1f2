"""Credentials in text: found, so that they can be refused, and masked before anything is printed or kept.

Recipes go into run folders and MLflow, messages into logs that people send each other. So a recipe or DeepSpeed JSON
that holds a credential is refused (`refuse`), and what is printed all the same passes through `masked`. Known forms
only: a user and password in an address, parameters whose name says what they are (``sig=``, ``X-Amz-Credential=``),
and tokens that their issuers made easy to know. A password that stands for itself looks like any other word, and
nobody can find it. Costs some microseconds a line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ssmke.errors import ConfigError

MASK = "***"

_WORD = (
    r"(?:sig|signature|secret|token|passw(?:or)?d|pwd|pass(?:phrase)?|credentials?|auth|authorization|jwt|sas"
    r"|api[_-]?key|access[_-]?key(?:[_-]?id)?|account[_-]?key|private[_-]?key|key|policy)"
)
_FORMS = (
    # user:password@ after a scheme, also after one slash, which is all that a path leaves of two.
    (
        re.compile(r"(\b[a-z][a-z0-9+.-]{0,30}:/{1,2})[^\s/?#:@'\"]{0,200}:[^\s/?#'\"]{0,2000}@", re.I),
        r"\1***@",
    ),
    # On the web, and for git, a user alone may be a token.
    (re.compile(r"(\bhttps?:/{1,2})[^\s/?#@'\"]{1,2000}@", re.I), r"\1***@"),
    # ?sig=..., &X-Amz-Signature=..., #access_token=..., ;password=...
    (re.compile(rf"([?&#;](?:[\w.%-]{{1,40}}[_-])?{_WORD}=)[^\s&#;'\"]{{1,4000}}", re.I), r"\1***"),
    # HF_TOKEN=..., aws_secret_access_key = ...; words of sentences ("token: ...") are none.
    (
        re.compile(
            r"\b((?:[A-Z0-9_]{0,40}(?:TOKEN|SECRET|PASSWORD|PASSWD|API_KEY|ACCESS_KEY|ACCESS_KEY_ID)"
            r"|aws_(?:secret_access_key|access_key_id|session_token)|password|passwd|api_key)"
            r"[\"']?\s?[=:]\s?[\"']?)[^\s\"',;&]{4,4000}"
        ),
        r"\1***",
    ),
    (
        re.compile(r"\b(Authorization[\"']?\s?[=:]\s?[\"']?(?:Bearer|Basic))\s+[^\s\"']{4,4000}", re.I),
        r"\1 ***",
    ),
    (re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{20,}"), MASK),
    (
        re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{20,})"),
        MASK,
    ),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), MASK),
    (re.compile(r"\bAIza[A-Za-z0-9_-]{35}"), MASK),
    (
        re.compile(r"\b(?:(?:sk|xox[abprs])-(?=[A-Za-z-]*\d)[A-Za-z0-9][A-Za-z0-9_-]{30,}|dapi[0-9a-f]{32})"),
        MASK,
    ),
    (re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"), MASK),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"), MASK),
)
_SECRET_KEY = re.compile(
    r"(?:.*[_-])?(?:api_?key|secret|password|passwd|token|access_?key|credentials?)", re.IGNORECASE
)

REMEDY = (
    "recipes and DeepSpeed JSONs are kept in run folders and MLflow. Give credentials where their client looks for "
    "them: AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (s3), GOOGLE_APPLICATION_CREDENTIALS (gs), "
    "`hf auth login` or HF_TOKEN (hub), ~/.netrc (web servers), MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD "
    "or MLFLOW_TRACKING_TOKEN (MLflow), ~/.pgpass or PGPASSWORD (PostgreSQL). What was on a command line has been "
    "seen by every process list and launcher log: change it"
)


def masked(text: str) -> str:
    """``text`` with ``***`` for what is known to be a credential."""
    for pattern, replacement in _FORMS:
        text = pattern.sub(replacement, text)
    return text


def holds(text: str) -> bool:
    """Whether `masked` finds anything that is not masked yet."""
    return masked(text) != text


def refuse(values: Mapping[str, Any], where: str) -> None:
    """Looks through nested ``values`` for credentials.

    Args:
        values: plain values, mappings and sequences.
        where: put before the dotted name of a value, such as ``--`` for flags.

    Raises:
        ConfigError: there is one; names its place, and shows it masked.
    """
    for name, key, text in _strings(values, ""):
        if holds(text) or (_SECRET_KEY.fullmatch(key) and text):
            shown = masked(text) if holds(text) else MASK
            name = name.replace("_", "-") if where.startswith("--") else name
            raise ConfigError(f"{where}{name} {shown}: a credential may not stand there, because {REMEDY}.")


def _strings(value: Any, name: str, key: str = "") -> Iterator[tuple[str, str, str]]:
    """Dotted name, last key and text of every string in ``value``; keys are looked at as well."""
    if isinstance(value, str):
        yield name, key, value
    elif isinstance(value, Mapping):
        for inner, item in value.items():
            yield from _strings(item, f"{name}.{inner}".lstrip("."), str(inner))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(item, name, key)
