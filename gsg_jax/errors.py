"""Errors that a user can mend, each said in one line."""

# Exit status of a process that was ended though nothing is wrong with its command, which goes on
# when it is given again: a crash to whoever restarts it, unlike 1 and 2.
AGAIN = 3


class UserError(Exception):
    """The job cannot go on; the message names the value, the limit and the mend (exit status 1)."""


class UsageError(UserError):
    """The command line or the config is wrong (exit status 2)."""
