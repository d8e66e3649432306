"""Who may use a cluster: nobody without its token."""

import os

from mhimdist.errors import ClusterError


def refuse_open_cluster(*, insecure: bool = False) -> None:
    """Refuse to use Ray without its token, by which whoever reaches a port runs commands on every node.

    Args:
        insecure: the user has said that this is meant, in a network that nobody else reaches.

    Raises:
        ClusterError: the environment turns Ray's authentication off.
    """
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled" and not insecure:
        raise ClusterError(
            "RAY_AUTH_MODE is 'disabled', expected 'token': without a token whoever reaches a port of the "
            "cluster runs commands on it. Make one by `ray get-auth-token --generate`, or give --insecure in "
            "a network that nobody else reaches"
        )
