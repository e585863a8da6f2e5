"""Errors that a user can mend, each said in one line."""


class UserError(Exception):
    """The job cannot go on; the message names the value, the limit and the mend (exit status 1)."""


class UsageError(UserError):
    """The command line or the config is wrong (exit status 2)."""
