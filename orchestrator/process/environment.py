"""
What the settings of every process are made of: environment variables, read once.
"""

from typing import Annotated, TypeVar
from urllib.parse import quote

from pydantic import AfterValidator, SecretStr, ValidationError
from pydantic_settings import BaseSettings

# Addresses that nobody outside this machine reaches.
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class SettingsError(Exception):
    """Names every variable that is missing or wrong, a line each."""


S = TypeVar("S", bound=BaseSettings)


def from_environment(kind: type[S]) -> S:
    """Read the settings of one role. Raises SettingsError."""
    try:
        return kind()
    except ValidationError as error:
        lines = [
            # What is wrong with several together names them itself.
            ": ".join((*map(str, problem["loc"][:1]), problem["msg"].removeprefix("Value error, ")))
            for problem in error.errors()
        ]
        raise SettingsError("\n".join(lines)) from None


def with_password(url: str, password: SecretStr | str | None) -> str:
    """The URL of a Redis, with this password if it names none."""
    scheme, mark, rest = url.partition("://")
    if not password or "@" in rest:
        return url
    secret = password if isinstance(password, str) else password.get_secret_value()
    return f"{scheme}{mark}:{quote(secret, safe='')}@{rest}"


def _presentable(secret: SecretStr) -> SecretStr:
    value = secret.get_secret_value()
    if not value or not all("!" <= letter <= "~" for letter in value):
        raise ValueError("a secret is of ASCII letters, digits and signs, and not empty")
    return secret


# Goes into a header. An empty one would be no secret at all.
HeaderSecret = Annotated[SecretStr, AfterValidator(_presentable)]
