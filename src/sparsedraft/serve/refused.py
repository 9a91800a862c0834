"""A request that cannot be answered."""


class Refused(Exception):
    """A request that cannot be answered: one sentence, the field at fault, OpenAI's code, and the HTTP status."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.message, self.param, self.code, self.status = message, param, code, status
