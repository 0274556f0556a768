"""Errors that a user can act on: one line that says what, the value seen, the values allowed, and what to do."""


class UserError(Exception):
    """A fault in what the user gave (config, file, layout); the command line prints it as one line and exits with `exit_code`."""

    exit_code = 2  # a new try of the same command would end the same

    def __init__(self, what: str, *, seen: object = None, allowed: object = None, remedy: str | None = None) -> None:
        self.what, self.seen, self.allowed, self.remedy = what, seen, allowed, remedy
        parts = [what]
        if seen is not None:
            parts.append(f"seen: {seen}")
        if allowed is not None:
            parts.append(f"allowed: {allowed}")
        if remedy is not None:
            parts.append(f"remedy: {remedy}")
        super().__init__(" | ".join(" ".join(str(part).split()) for part in parts))

    def __reduce__(self) -> tuple[object, ...]:
        """Crosses process borders (Ray pickles exceptions) with its message whole."""
        return (_rebuild, (type(self), str(self)))


def _rebuild(kind: type[UserError], message: str) -> UserError:
    error = kind.__new__(kind)
    Exception.__init__(error, message)
    error.what, error.seen, error.allowed, error.remedy = message, None, None, None
    return error


class Unavailable(UserError):
    """Something outside did not answer in time (a service that starts, a port, a store): the same command may work a moment later."""

    exit_code = 69  # sysexits.h EX_UNAVAILABLE; schedulers queue the job again


class Stopped(UserError):
    """Work was asked to stop by a signal; what is whole is kept, and the same command goes on."""

    exit_code = 75  # sysexits.h EX_TEMPFAIL, as a training that saved; schedulers queue the job again


class PartlyDone(UserError):
    """Of several inputs some cannot be used, each was told of; what the others make is whole and written."""

    exit_code = 3


class MissingDependency(UserError):
    """An optional package that this feature needs is not installed."""

    def __init__(self, package: str, *, needed_for: str, extra: str) -> None:
        super().__init__(
            f"{needed_for} needs the package {package}, which is not installed",
            remedy=f"pip install 'uniaudio[{extra}]' (or pip install {package})",
        )
