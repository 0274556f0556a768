"""Where an MLflow store lies: the address of MLFLOW_TRACKING_URI, the forms it may have, and how it is shown (no password of it)."""

import re
from pathlib import Path
from urllib.parse import urlsplit

from uniaudio.errors import UserError

FORMS = "http(s)://host:port, sqlite:////a/file.db, postgresql://user@host/name, mysql+pymysql://user@host/name"
REMEDY = "correct MLFLOW_TRACKING_URI, or unset it: then a sqlite file beside the output folder is the store"
_INSTALLED_AS = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}


def shown(text: str) -> str:
    """`text`, an address or an error that has one in it, without user, password and tokens."""
    text = re.sub(r"://[^\s'\"]*@", "://***@", text)
    return re.sub(r"(?i)((?:password|passwd|token)=)[^&\s'\"]+", r"\1***", text)


def check_address(uri: str) -> None:
    """Raises UserError where `uri` can be no store that lasts; schemes that only MLflow knows (its plugins') are left to it."""
    if uri.startswith("sqlite"):
        file = uri.partition(":///")[2].partition("?")[0]
        if not Path(file).name or file.startswith((":memory:", "file::memory:")):
            raise wrong_address(uri, "names no file (a store in memory would be lost at the end)")
    elif uri.startswith(("http:", "https:")):
        try:
            parts = urlsplit(uri)
            whole = bool(parts.hostname) and parts.port != 0
        except ValueError:
            whole = False
        if not whole:
            raise wrong_address(uri, "names no server")


def wrong_address(uri: str, why: str) -> UserError:
    """What trying again does not help."""
    return UserError("the MLflow store cannot be used", seen=f"{shown(uri)}: {shown(why)}", allowed=FORMS, remedy=REMEDY)


def missing_driver(uri: str, error: ModuleNotFoundError) -> UserError:
    """The store's database needs a package that is not installed."""
    package = str(error.name).split(".")[0]
    remedy = f"pip install '{_INSTALLED_AS.get(package, package)}'"
    return UserError(f"the MLflow store needs the package {package}, which is not installed", seen=shown(uri), remedy=remedy)
