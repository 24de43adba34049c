"""The one exception that means "the user can mend this"."""


class UsageError(Exception):
    """A bad option, file or combination: one sentence that names the thing and the remedy.

    The command line prints the sentence without a traceback and exits with status 2.
    """
