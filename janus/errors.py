"""The error a user can repair. It does not own internal invariants: those are ``assert``."""


class UserError(Exception):
    """A user's mistake: one sentence with name, value, rule and repair; exit code 2, no traceback."""
