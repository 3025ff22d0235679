"""
What the settings of every process are made of: environment variables, read once.
"""

from typing import Annotated, TypeVar

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
            f"{problem['loc'][0]}: {problem['msg'].removeprefix('Value error, ')}"
            for problem in error.errors()
        ]
        raise SettingsError("\n".join(lines)) from None


def _presentable(secret: SecretStr) -> SecretStr:
    value = secret.get_secret_value()
    if not value or not all("!" <= letter <= "~" for letter in value):
        raise ValueError("a secret is of ASCII letters, digits and signs, and not empty")
    return secret


# Goes into a header. An empty one would be no secret at all.
HeaderSecret = Annotated[SecretStr, AfterValidator(_presentable)]
