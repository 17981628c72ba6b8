"""How the packages that something needs are installed."""

META = "in a clone of sam3lab, run `make meta`"  # its package asks for older releases, so that pip alone does not do


def remedy(*extras: str) -> str:
    """What installs one of these extras of pyproject.toml, in the versions that the project is tested with."""
    return "in a clone of sam3lab, pip install -c constraints.txt " + " or ".join(
        f"-e '.[{extra}]'" for extra in extras
    )
