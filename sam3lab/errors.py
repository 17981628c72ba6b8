"""The one exception that is meant for the user's eyes."""


class UserError(Exception):
    """Bad input. The message names the input and the remedy; the command line prints it alone and exits with 2."""
